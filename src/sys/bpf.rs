//! Calls bpf(2): makes maps, loads a tracing program, attaches it, and reads its ring buffer.
//!
//! An object of bpf(2) is a map, a program or an attachment. It exists as long as a descriptor or another object refers to it. If twtool is
//! killed, the kernel closes the descriptors, detaches the program and frees it.
//!
//! A ring buffer is memory that the kernel and twtool share (Documentation/bpf/ringbuf.rst):
//!
//! ```text
//!   offset 0            one page: how far twtool has read          written by twtool
//!   one page            one page: how far the kernel has written   written by the kernel
//!   two pages           the records, twice in a row                written by the kernel
//! ```
//!
//! A record has a header of 8 bytes. The first 4 bytes contain the length of the record and two flags. The records are mapped twice in a
//! row, so a record that crosses the end of the buffer is contiguous, too.

use std::ffi::{c_long, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::errno::retry;
use super::interrupt::Interrupts;

// enum bpf_cmd.
const MAP_CREATE: c_long = 0;
const MAP_LOOKUP_ELEM: c_long = 1;
const PROG_LOAD: c_long = 5;
const OBJ_GET_INFO_BY_FD: c_long = 15;
const RAW_TRACEPOINT_OPEN: c_long = 17;

/// A kind of map (enum bpf_map_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Values by index.
    Array = 2,
    /// Values by key. In a full map, a new entry replaces one that was not used recently.
    LruHash = 9,
    /// A ring buffer. For this kind, the number of entries is the size of the buffer in bytes.
    Ring = 27,
}

/// A descriptor of a map, a program or an attachment.
#[derive(Debug)]
pub struct Object(OwnedFd);

impl Object {
    /// The number of the descriptor, by which BPF programs refer to the object.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Calls bpf(2) with the part of `union bpf_attr` that the command uses.
fn bpf<T>(command: c_long, attributes: &T) -> io::Result<c_long> {
    retry(|| {
        // SAFETY: the structure has the layout of union bpf_attr for this command, and the addresses in it belong to borrows that
        // outlive the call. The kernel reads `size` bytes of it.
        #[expect(unsafe_code, reason = "bpf has no safe wrapper")]
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes).cast::<c_void>(), size_of::<T>())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    })
}

fn open<T>(command: c_long, attributes: &T) -> io::Result<Object> {
    let number = bpf(command, attributes)?;
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor, with the flag close-on-exec, and nothing else owns it.
    #[expect(unsafe_code, reason = "bpf has no safe wrapper")]
    Ok(Object(unsafe { OwnedFd::from_raw_fd(number) }))
}

fn address<T: ?Sized>(of: &T) -> u64 {
    std::ptr::from_ref(of).cast::<u8>().expose_provenance() as u64
}

fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(text.bytes().take(15)) {
        *to = from;
    }
    name
}

/// Makes a map.
///
/// # Errors
/// EPERM without CAP_BPF (with kernel.unprivileged_bpf_disabled=0, only [`MapKind::LruHash`] needs it). EINVAL if the kernel does not
/// support the kind.
pub fn make_map(kind: MapKind, key: u32, value: u32, entries: u32) -> io::Result<Object> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    open(
        MAP_CREATE,
        &Attributes {
            map_type: kind as u32,
            key_size: key,
            value_size: value,
            max_entries: entries,
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: name("twtool"),
        },
    )
}

/// Reads a value of an array.
///
/// # Errors
/// The index is too large, or the kernel refuses the call: before Linux 5.19, reading needs CAP_BPF unless
/// kernel.unprivileged_bpf_disabled is 0.
pub fn read_array(map: &Object, index: u32) -> io::Result<u64> {
    #[repr(C)]
    struct Attributes {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    // The kernel writes to this value, so it is atomic.
    let value = AtomicU64::new(0);
    bpf(
        MAP_LOOKUP_ELEM,
        &Attributes {
            map_fd: map.number().cast_unsigned(),
            pad: 0,
            key: address(&index),
            value: address(&value),
            flags: 0,
        },
    )?;
    Ok(value.into_inner())
}

/// Loads a program for a tracepoint with typed arguments (BPF_TRACE_RAW_TP). `tracepoint` is the number of the type
/// `btf_trace_NAME`. If the kernel rejects the program, it writes the reason to `log`.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_PERFMON. EINVAL or EACCES if the kernel rejects the program.
pub fn load_program(code: &[u8], tracepoint: u32, log: Option<&mut [u8]>) -> io::Result<Object> {
    const TRACING: u32 = 26;
    const TRACE_RAW_TP: u32 = 23;
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
        prog_btf_fd: u32,
        func_info_rec_size: u32,
        func_info: u64,
        func_info_cnt: u32,
        line_info_rec_size: u32,
        line_info: u64,
        line_info_cnt: u32,
        attach_btf_id: u32,
    }
    // Only programs with a license that is compatible with the GPL may call the functions that read the kernel's memory.
    let license = c"Dual MIT/GPL";
    let (log_buf, log_size) = log.map_or((0, 0), |log| {
        (log.as_mut_ptr().expose_provenance() as u64, u32::try_from(log.len()).unwrap_or(u32::MAX))
    });
    open(
        PROG_LOAD,
        &Attributes {
            prog_type: TRACING,
            insn_cnt: u32::try_from(code.len() / 8).map_err(io::Error::other)?,
            insns: address(code),
            license: address(license),
            log_level: u32::from(log_size > 0),
            log_size,
            log_buf,
            prog_name: name("twtool_closes"),
            expected_attach_type: TRACE_RAW_TP,
            attach_btf_id: tracepoint,
            ..Attributes::default()
        },
    )
}

/// Attaches a program of [`load_program`]. It runs until the returned object is dropped.
///
/// # Errors
/// The kernel refuses to attach the program.
pub fn attach(program: &Object) -> io::Result<Object> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        prog_fd: u32,
        pad: u32,
    }
    // The program itself names the tracepoint, so the name is null.
    open(RAW_TRACEPOINT_OPEN, &Attributes { name: 0, prog_fd: program.number().cast_unsigned(), pad: 0 })
}

/// Returns how often the kernel did not start a program because the program was already running on the same core (`recursion_misses`).
///
/// # Errors
/// bpf(2) failed.
pub fn recursion_misses(program: &Object) -> io::Result<u64> {
    /// The length of struct bpf_prog_info up to and including `recursion_misses`, in words of 8 bytes.
    const WORDS: u32 = 27;
    #[repr(C)]
    struct Attributes {
        fd: u32,
        bytes: u32,
        info: u64,
    }
    // The kernel writes to these words, so they are atomic. All lengths and addresses in them are 0, so the kernel copies neither code
    // nor lists.
    let info: [AtomicU64; WORDS as usize] = Default::default();
    let fd = program.number().cast_unsigned();
    bpf(OBJ_GET_INFO_BY_FD, &Attributes { fd, bytes: 8 * WORDS, info: address(&info) })?;
    Ok(info[WORDS as usize - 1].load(Ordering::Relaxed))
}

struct Mapping {
    start: NonNull<u8>,
    length: NonZeroUsize,
}

impl Mapping {
    fn new(map: &Object, length: usize, offset: usize, writable: bool) -> io::Result<Self> {
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the kernel chooses a free address, and nothing else uses that memory.
        #[expect(unsafe_code, reason = "mmap has no safe wrapper")]
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length.get(), protection, libc::MAP_SHARED, map.number(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mmap returned this memory with this length, and every borrow of it has ended.
        #[expect(unsafe_code, reason = "munmap has no safe wrapper")]
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.length.get());
        }
    }
}

/// A ring buffer that the kernel writes and twtool reads.
pub struct Ring {
    map: Object,
    /// The page that shows how far twtool has read.
    read: Mapping,
    /// The page that shows how far the kernel has written, and the records after that page.
    written: Mapping,
    page: usize,
    bytes: u32,
}

/// The flag of a record that is not complete yet.
const BUSY: u32 = 1 << 31;
/// The flag of a record that the BPF program has discarded.
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;

impl Ring {
    /// Makes a ring buffer with this number of bytes: a power of two, and at least a page.
    ///
    /// # Errors
    /// As for [`make_map`], or the memory cannot be mapped.
    pub fn new(bytes: u32) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|page| usize::try_from(page).ok()).ok_or(io::ErrorKind::Unsupported)?;
        let map = make_map(MapKind::Ring, 0, 0, bytes)?;
        let read = Mapping::new(&map, page, 0, true)?;
        let written = Mapping::new(&map, page + 2 * bytes as usize, page, false)?;
        Ok(Self { map, read, written, page, bytes })
    }

    /// The number of the descriptor, by which BPF programs refer to the buffer.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.map.number()
    }

    /// Passes records to `each`, up to the first record that is not complete. The call also stops at the position that the kernel had
    /// reached when the call began, so it ends even if the kernel keeps writing.
    pub fn drain(&mut self, each: &mut dyn FnMut(&[u8])) {
        // SAFETY: each mapping begins at a page and is at least a page long, and both sides access the 8 bytes there atomically.
        #[expect(unsafe_code, reason = "memory that is shared with the kernel")]
        let (read, written) = unsafe {
            (
                AtomicU64::from_ptr(self.read.start.as_ptr().cast()),
                AtomicU64::from_ptr(self.written.start.as_ptr().cast()),
            )
        };
        let mut at = read.load(Ordering::Relaxed);
        let end = written.load(Ordering::Acquire);
        while at < end {
            let place = self.page + usize::try_from(at & u64::from(self.bytes - 1)).unwrap_or(0);
            // SAFETY: the place is in the mapping and a multiple of 8, and both sides access the header atomically.
            #[expect(unsafe_code, reason = "memory that is shared with the kernel")]
            let header = unsafe { AtomicU32::from_ptr(self.written.start.as_ptr().add(place).cast()) };
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let length = (header & !(BUSY | DISCARDED)) as usize;
            if header & DISCARDED == 0 && length <= self.bytes as usize {
                // SAFETY: the record lies in the mapping, because it begins in the first of two copies and is not longer than one.
                // The kernel does not change it until the reader's position has passed it.
                #[expect(unsafe_code, reason = "memory that is shared with the kernel")]
                let record = unsafe { slice::from_raw_parts(self.written.start.as_ptr().add(place + HEADER), length) };
                each(record);
            }
            at += (HEADER + length).next_multiple_of(8) as u64;
            read.store(at, Ordering::Release);
        }
    }
}

/// This descriptor becomes readable when the kernel wakes the reader.
impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.0.as_fd()
    }
}

/// Waits until the kernel wakes the reader of a ring buffer, or a signal arrives.
///
/// poll(2) would return at once while the buffer has records, so twtool would wake for every record. An edge-triggered epoll(7)
/// returns only when the kernel wakes the reader.
pub struct Wakes(Epoll);

impl Wakes {
    /// Prepares to wait for the ring buffer. With `interrupts`, it also waits for signals.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(ring: BorrowedFd<'_>, interrupts: Option<&Interrupts>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(ring, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        if let Some(interrupts) = interrupts {
            epoll.add(interrupts.descriptor(), EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        }
        Ok(Self(epoll))
    }

    /// Waits until the kernel wakes the reader or a signal arrives, but for this time at most.
    ///
    /// # Errors
    /// epoll_wait(2) failed.
    pub fn wait(&self, time: Duration) -> io::Result<()> {
        // Round up to whole milliseconds, so that a caller that waits in a loop does not spin.
        let timeout = EpollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX);
        match self.0.wait(&mut [EpollEvent::empty(); 2], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
