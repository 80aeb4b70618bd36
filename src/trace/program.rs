//! Assembles the BPF program that records which process closes a connection.
//!
//! The program runs at the tracepoint inet_sock_set_state, which the kernel reaches at each change of a TCP state:
//!
//! 1. A change to FIN_WAIT_1: this end closes first, usually in a system call of the current task (`Task::closed_socket`). The program
//!    fills a record (`record`), and stores it in the map PENDING. The key is the cookie of the socket. When the program reads the cookie,
//!    the kernel assigns one if the socket has none. The bucket inherits the cookie.
//! 2. A change from FIN_WAIT_1, FIN_WAIT_2 or CLOSING to CLOSE: the full socket ends. Its old state, its flags and its error show whether
//!    a bucket replaces it. The program adds them to the record of step 1, sends the record to the ring buffer, and marks it as sent. If
//!    PENDING has no record, the program sends a record without a task. This happens if the connection closed before the program was
//!    attached, if the program missed step 1, or if PENDING has evicted the record.
//! 3. If the ring buffer is full, the program counts the lost record.
//!
//! While a program runs on a core, the kernel does not start it again on this core (`bpf_prog_get_recursion_context` in
//! kernel/trace/bpf_trace.c). If an interrupt or another task closes a socket at that moment, the program misses the close: up to
//! 0.7 % of 20,000 closes on two busy cores (Linux 6.18, 2026-11-28). This applies to each program separately, so twtool attaches two
//! copies of the program. In step 1, if the second copy finds a record in PENDING, it does nothing. In step 2, if it finds the mark, it
//! only deletes the record. Otherwise the first copy has missed the change, and the second copy does the step.
//!
//! If the kernel can preempt a task at a tracepoint (seen on Linux 7.2), it may preempt one task within the first copy, and another task
//! of the same core within the second copy. Until they continue, both copies miss the closes on this core. `Tracer::skipped` returns an
//! upper bound of these closes.
//!
//! Most records do not wake the reader, because that would halve the rate of short connections. The reader polls the buffer at
//! intervals, and the program wakes the reader each time about another quarter of the buffer is full.

use super::btf::{Btf, BtfError};
use super::insn::{Assembler, FP, JumpCondition, Label, R0, R1, R2, R3, R4, R6, R7, R8, R9, Reg, Size};
use super::record::{self, LENGTH};

/// The name of the tracepoint's type in BTF.
pub const TRACEPOINT: &str = "btf_trace_inet_sock_set_state";

/// The size of a key of PENDING in bytes. A key is a cookie.
pub const KEY: u32 = 8;

// enum bpf_func_id.
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const KTIME_GET_NS: i32 = 5;
const GET_CURRENT_PID_TGID: i32 = 14;
const GET_CURRENT_UID_GID: i32 = 15;
const GET_SOCKET_COOKIE: i32 = 46;
const GET_CURRENT_CGROUP_ID: i32 = 80;
const PROBE_READ_KERNEL: i32 = 113;
const PROBE_READ_KERNEL_STR: i32 = 115;
const RINGBUF_OUTPUT: i32 = 130;
const RINGBUF_QUERY: i32 = 134;
const SKC_TO_TCP_SOCK: i32 = 137;
const GET_CURRENT_TASK_BTF: i32 = 158;

// Numbers of net/tcp_states.h.
const FIN_WAIT1: i32 = 4;
const FIN_WAIT2: i32 = 5;
const CLOSE: i32 = 7;
const CLOSING: i32 = 11;

const IPPROTO_TCP: i32 = 6;
const AF_INET6: i32 = 10;

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP`.
const NO_WAKEUP: i32 = 1;
const FORCE_WAKEUP: i32 = 2;

/// The offsets in bytes of the members of kernel structures that the program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    family: i16,
    local_port: i16,
    remote_port: i16,
    /// `inet_sport`, from the beginning of struct tcp_sock.
    source_port: i16,
    /// `linger2`, from the beginning of struct tcp_sock.
    linger2: i16,
    ipv4: [i16; 2],
    /// The local and the remote address; `None` on a kernel without IPv6.
    ipv6: Option<[i16; 2]>,
    interface: i16,
    net: i16,
    flags: i16,
    protocol: i16,
    error: i16,
    mark: i16,
    backlog: i16,
    owned: i16,
    netns_inode: i16,
    /// `ip_local_port_range`, and its size in bytes: 4 since Linux 6.8, 8 before. `None` if the member has another name or size.
    port_range: Option<(i16, i16)>,
    leader: i16,
    start: i16,
    comm: i16,
    task_flags: i16,
    cgroups: i16,
    default_cgroup: i16,
    kernfs: i16,
    kernfs_name: i16,
}

impl Offsets {
    /// Finds the offset of every member.
    ///
    /// # Errors
    /// A structure or a member does not exist, or a member has another size than the program expects. Only the members for IPv6 and the
    /// port range may be absent.
    pub fn find(btf: &Btf) -> Result<Self, BtfError> {
        let field = |structure, path, size| {
            let offset = btf.field(structure, path, size)?;
            i16::try_from(offset).map_err(|_| BtfError::Form("a member has a very large offset"))
        };
        let sock = |path, size| field("sock", path, size);
        let ipv6 = |path| match sock(path, 16) {
            Err(BtfError::NoMember { .. }) => Ok(None),
            found => found.map(Some),
        };
        let port_range = |bytes: i16| {
            let offset = field("net", "ipv4.ip_local_ports.range", bytes.unsigned_abs().into());
            offset.ok().map(|offset| (offset, bytes))
        };
        let (local, remote) = (ipv6("__sk_common.skc_v6_rcv_saddr")?, ipv6("__sk_common.skc_v6_daddr")?);
        Ok(Self {
            family: sock("__sk_common.skc_family", 2)?,
            local_port: sock("__sk_common.skc_num", 2)?,
            remote_port: sock("__sk_common.skc_dport", 2)?,
            source_port: field("tcp_sock", "inet_conn.icsk_inet.inet_sport", 2)?,
            linger2: field("tcp_sock", "linger2", 4)?,
            ipv4: [sock("__sk_common.skc_rcv_saddr", 4)?, sock("__sk_common.skc_daddr", 4)?],
            ipv6: local.zip(remote).map(|(local, remote)| [local, remote]),
            interface: sock("__sk_common.skc_bound_dev_if", 4)?,
            net: sock("__sk_common.skc_net.net", 8)?,
            flags: sock("__sk_common.skc_flags", 8)?,
            protocol: sock("sk_protocol", 2)?,
            error: sock("sk_err", 4)?,
            mark: sock("sk_mark", 4)?,
            backlog: sock("sk_max_ack_backlog", 4)?,
            owned: sock("sk_lock.owned", 4)?,
            netns_inode: field("net", "ns.inum", 4)?,
            port_range: port_range(4).or_else(|| port_range(8)),
            leader: field("task_struct", "group_leader", 8)?,
            start: field("task_struct", "start_boottime", 8)?,
            comm: field("task_struct", "comm", 16)?,
            task_flags: field("task_struct", "flags", 4)?,
            cgroups: field("task_struct", "cgroups", 8)?,
            default_cgroup: field("css_set", "dfl_cgrp", 8)?,
            kernfs: field("cgroup", "kn", 8)?,
            kernfs_name: field("kernfs_node", "name", 8)?,
        })
    }
}

/// The descriptors of the maps, and the size of the ring buffer.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// An LRU hash from cookies to records.
    pub pending: i32,
    /// The ring buffer.
    pub ring: i32,
    /// An array with one number: how many records were lost.
    pub lost: i32,
    /// The size of the ring buffer in bytes.
    pub ring_bytes: u32,
}

// Offsets on the stack of the BPF program: the record, the cookie, and 8 bytes for an index or a pointer.
const RECORD: i16 = -LENGTH;
const COOKIE: i16 = RECORD - 8;
const INDEX: i16 = COOKIE - 8;

/// Assembles the program. With `untyped`, the program follows pointers with bpf_probe_read_kernel. A kernel in lockdown mode
/// "confidentiality" rejects this. Without `untyped`, records have no cgroup name.
///
/// For each typed load of a pointer, the verifier searches all types of the kernel several times for names
/// (`btf_nested_type_is_trusted`). So loading a copy takes 10 ms with typed loads, and 1.5 ms without (Linux 6.18, 2026-11-28).
#[must_use]
pub fn assemble(offsets: &Offsets, maps: Maps, untyped: bool) -> Vec<u8> {
    let mut a = Assembler::default();
    let (wanted, fill, closed, finish, end) = (a.label(), a.label(), a.label(), a.label(), a.label());
    // R6 is the socket, R7 is the new state, and R8 is the old state.
    a.load(Size::Double, R7, R1, 16);
    a.load(Size::Double, R8, R1, 8);
    a.load(Size::Double, R6, R1, 0);
    a.jump_if(JumpCondition::Equal, R7, FIN_WAIT1, wanted);
    a.jump_if(JumpCondition::NotEqual, R7, CLOSE, end);
    for state in [FIN_WAIT1, FIN_WAIT2, CLOSING] {
        a.jump_if(JumpCondition::Equal, R8, state, wanted);
    }
    a.jump(end);
    a.place(wanted);
    // MPTCP reports its own states at the same tracepoint.
    a.load(Size::Half, R2, R6, offsets.protocol);
    a.jump_if(JumpCondition::NotEqual, R2, IPPROTO_TCP, end);
    a.copy(R1, R6);
    a.call(GET_SOCKET_COOKIE);
    a.store(Size::Double, FP, COOKIE, R0);
    // R9 is the address of the record, in the map or on the stack.
    on_pending(&mut a, maps, MAP_LOOKUP);
    a.copy(R9, R0);
    a.jump_if(JumpCondition::Equal, R0, 0, fill);
    // The other copy of the program has already stored the task.
    a.jump_if(JumpCondition::Equal, R7, FIN_WAIT1, end);
    a.load(Size::Byte, R1, R9, record::SENT);
    a.jump_if(JumpCondition::Equal, R1, 0, finish);
    on_pending(&mut a, maps, MAP_DELETE);
    a.jump(end);

    a.place(fill);
    fill_record(&mut a, offsets, untyped);
    a.jump_if(JumpCondition::Equal, R7, CLOSE, closed);
    add_task(&mut a, offsets, untyped);
    store_record(&mut a, maps);
    a.jump(end);

    a.place(closed);
    add_source_port(&mut a, offsets);
    a.address(R9, FP, RECORD);
    a.set(R7, ON_THE_STACK);
    a.place(finish);
    a.store(Size::Byte, R9, record::OLD_STATE, R8);
    a.store_value(Size::Byte, R9, record::SENT, 1);
    copy_member(&mut a, Size::Word, offsets.error, record::ERROR);
    copy_member(&mut a, Size::Double, offsets.flags, record::FLAGS);
    add_linger2(&mut a, offsets);
    send(&mut a, maps);
    // The mark in PENDING prevents the other copy of the program from sending the close again.
    a.jump_if(JumpCondition::NotEqual, R7, ON_THE_STACK, end);
    store_record(&mut a, maps);
    a.place(end);
    a.set(R0, 0);
    a.exit();
    a.finish()
}

/// The value of R7 if the record is on the stack and not in PENDING. No state has this number.
const ON_THE_STACK: i32 = 100;

/// Copies the record from the stack to PENDING.
fn store_record(a: &mut Assembler, maps: Maps) {
    a.address(R3, FP, RECORD);
    a.set(R4, 0);
    on_pending(a, maps, MAP_UPDATE);
}

/// Copies a member of the socket in R6 to the record at R9.
fn copy_member(a: &mut Assembler, size: Size, from: i16, to: i16) {
    a.load(size, R1, R6, from);
    a.store(size, R9, to, R1);
}

/// Calls a function that looks up, updates or deletes the entry of the cookie in PENDING.
fn on_pending(a: &mut Assembler, maps: Maps, function: i32) {
    a.map(R1, maps.pending);
    a.address(R2, FP, COOKIE);
    a.call(function);
}

/// Fills the record on the stack from the socket.
fn fill_record(a: &mut Assembler, offsets: &Offsets, untyped: bool) {
    for at in (0..LENGTH).step_by(8) {
        a.store_value(Size::Double, FP, RECORD + at, 0);
    }
    a.call(KTIME_GET_NS);
    a.store(Size::Double, FP, RECORD + record::TIME, R0);
    a.load(Size::Double, R1, FP, COOKIE);
    a.store(Size::Double, FP, RECORD + record::COOKIE, R1);
    let mut copy = |size, from, to| {
        a.load(size, R1, R6, from);
        a.store(size, FP, RECORD + to, R1);
    };
    copy(Size::Word, offsets.owned, record::OWNED);
    copy(Size::Word, offsets.backlog, record::BACKLOG);
    copy(Size::Word, offsets.interface, record::INTERFACE);
    copy(Size::Word, offsets.mark, record::MARK);
    copy(Size::Half, offsets.family, record::FAMILY);
    copy(Size::Half, offsets.local_port, record::LOCAL_PORT);
    copy(Size::Half, offsets.remote_port, record::REMOTE_PORT);
    if untyped {
        follow(a, R6, offsets.net);
        read_untyped(a, RECORD + record::NETNS, 4, R3, offsets.netns_inode);
        if let Some((member, bytes)) = offsets.port_range {
            a.load(Size::Double, R3, FP, INDEX);
            read_untyped(a, RECORD + record::PORT_RANGE, bytes.into(), R3, member);
        }
    } else {
        a.load(Size::Double, R2, R6, offsets.net);
        a.load(Size::Word, R1, R2, offsets.netns_inode);
        a.store(Size::Word, FP, RECORD + record::NETNS, R1);
        if let Some((member, bytes)) = offsets.port_range {
            for word in (0..bytes).step_by(4) {
                a.load(Size::Word, R1, R2, member + word);
                a.store(Size::Word, FP, RECORD + record::PORT_RANGE + word, R1);
            }
        }
    }
    let (ipv4, end) = (a.label(), a.label());
    let places = [record::LOCAL_ADDR, record::REMOTE_ADDR];
    if let Some(ipv6) = offsets.ipv6 {
        a.load(Size::Half, R1, R6, offsets.family);
        a.jump_if(JumpCondition::NotEqual, R1, AF_INET6, ipv4);
        for (from, to) in ipv6.into_iter().zip(places) {
            for half in [0, 8] {
                a.load(Size::Double, R1, R6, from + half);
                a.store(Size::Double, FP, RECORD + to + half, R1);
            }
        }
        a.jump(end);
    }
    a.place(ipv4);
    for (from, to) in offsets.ipv4.into_iter().zip(places) {
        a.load(Size::Word, R1, R6, from);
        a.store(Size::Word, FP, RECORD + to, R1);
    }
    a.place(end);
}

/// Adds the local port to the record on the stack. The port comes from `inet_sport`, because in the state CLOSE `skc_num` can already
/// be 0.
fn add_source_port(a: &mut Assembler, offsets: &Offsets) {
    let end = a.label();
    a.copy(R1, R6);
    a.call(SKC_TO_TCP_SOCK);
    a.jump_if(JumpCondition::Equal, R0, 0, end);
    a.load(Size::Half, R1, R0, offsets.source_port);
    a.from_network_order_16(R1);
    a.store(Size::Half, FP, RECORD + record::LOCAL_PORT, R1);
    a.place(end);
}

/// Adds `TCP_LINGER2` to the record at R9 if the old state is FIN_WAIT_2. With a negative value, the kernel creates no bucket for a
/// socket in FIN_WAIT_2 that no process has open.
fn add_linger2(a: &mut Assembler, offsets: &Offsets) {
    let end = a.label();
    a.jump_if(JumpCondition::NotEqual, R8, FIN_WAIT2, end);
    a.copy(R1, R6);
    a.call(SKC_TO_TCP_SOCK);
    a.jump_if(JumpCondition::Equal, R0, 0, end);
    a.load(Size::Word, R1, R0, offsets.linger2);
    a.store(Size::Word, R9, record::LINGER2, R1);
    a.place(end);
}

/// Adds the current task to the record on the stack. Overwrites R8.
fn add_task(a: &mut Assembler, offsets: &Offsets, untyped: bool) {
    let result = |a: &mut Assembler, function, size, to| {
        a.call(function);
        a.store(size, FP, RECORD + to, R0);
    };
    result(a, GET_CURRENT_PID_TGID, Size::Double, record::TASK);
    result(a, GET_CURRENT_UID_GID, Size::Word, record::UID);
    result(a, GET_CURRENT_CGROUP_ID, Size::Double, record::CGROUP);
    a.store_value(Size::Byte, FP, RECORD + record::HAS_TASK, 1);
    a.call(GET_CURRENT_TASK_BTF);
    a.copy(R8, R0);
    copy_task(a, Size::Word, R8, offsets.task_flags, record::TASK_FLAGS);
    copy_comm(a, offsets, R8, record::THREAD);
    if !untyped {
        a.load(Size::Double, R2, R8, offsets.leader);
        copy_task(a, Size::Double, R2, offsets.start, record::START);
        copy_comm(a, offsets, R2, record::COMM);
        return;
    }
    follow(a, R8, offsets.leader);
    read_untyped(a, RECORD + record::START, 8, R3, offsets.start);
    a.load(Size::Double, R3, FP, INDEX);
    read_untyped(a, RECORD + record::COMM, 16, R3, offsets.comm);
    follow(a, R8, offsets.cgroups);
    for member in [offsets.default_cgroup, offsets.kernfs, offsets.kernfs_name] {
        follow(a, R3, member);
    }
    a.address(R1, FP, RECORD + record::CGROUP_NAME);
    a.set(R2, (LENGTH - record::CGROUP_NAME).into());
    a.call(PROBE_READ_KERNEL_STR);
}

/// Copies `bytes` bytes of kernel memory from `base + offset` to the stack at `to`.
fn read_untyped(a: &mut Assembler, to: i16, bytes: i32, base: Reg, offset: i16) {
    a.address(R3, base, offset);
    a.address(R1, FP, to);
    a.set(R2, bytes);
    a.call(PROBE_READ_KERNEL);
}

/// Copies the pointer at `base + offset` to R3, and to INDEX on the stack.
fn follow(a: &mut Assembler, base: Reg, offset: i16) {
    read_untyped(a, INDEX, 8, base, offset);
    a.load(Size::Double, R3, FP, INDEX);
}

fn copy_task(a: &mut Assembler, size: Size, task: Reg, from: i16, to: i16) {
    a.load(size, R1, task, from);
    a.store(size, FP, RECORD + to, R1);
}

fn copy_comm(a: &mut Assembler, offsets: &Offsets, task: Reg, to: i16) {
    for half in [0, 8] {
        copy_task(a, Size::Double, task, offsets.comm + half, to + half);
    }
}

/// Sends the record at R9, and counts it as lost if the buffer is full.
fn send(a: &mut Assembler, maps: Maps) {
    const AVAILABLE: i32 = 0;
    /// If the unread data exceeds a multiple of a quarter of the buffer by less than this size, the record wakes the reader. Each record
    /// adds half of this size, so no multiple is missed.
    const NEAR: i32 = 2 * (LENGTH as i32 + 8);
    let quarter = (maps.ring_bytes / 4).cast_signed();
    let (output, sent): (Label, Label) = (a.label(), a.label());
    a.map(R1, maps.ring);
    a.set(R2, AVAILABLE);
    a.call(RINGBUF_QUERY);
    a.set(R4, NO_WAKEUP);
    a.jump_if(JumpCondition::Less, R0, quarter, output);
    a.and(R0, quarter - 1);
    a.jump_if(JumpCondition::AtLeast, R0, NEAR, output);
    a.set(R4, FORCE_WAKEUP);
    a.place(output);
    a.map(R1, maps.ring);
    a.copy(R2, R9);
    a.set(R3, LENGTH.into());
    a.call(RINGBUF_OUTPUT);
    // R0 is 0 or a negative errno.
    a.jump_if(JumpCondition::Equal, R0, 0, sent);
    a.store_value(Size::Word, FP, INDEX, 0);
    a.map(R1, maps.lost);
    a.address(R2, FP, INDEX);
    a.call(MAP_LOOKUP);
    a.jump_if(JumpCondition::Equal, R0, 0, sent);
    a.set(R1, 1);
    a.atomic_add(R0, 0, R1);
    a.place(sent);
}
