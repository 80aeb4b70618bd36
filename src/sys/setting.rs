//! Reads a file of /proc/sys or /sys completely with one read(2).
//!
//! For a setting that is a list (`ip_local_reserved_ports`) the kernel returns data only to the first read(2), up to the size of the
//! buffer, and reports the end of the file to the second read(2) (`proc_do_large_bitmap` in kernel/sysctl.c). `fs::read_to_string` begins
//! with 32 bytes, so it cuts such a list. A test in tests/layers.rs checks that no other code reads settings.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The sizes of buffers in bytes, tried in this order. For each read of a setting the kernel allocates and clears a buffer that is one byte
/// larger, so 4095 bytes need one page. This takes 6 µs with 4095 bytes and 63 µs with 1 MiB (Linux 6.18). The longest list, two
/// of every three ports, has 249 KiB.
const BUFFERS: [usize; 2] = [4095, 1 << 20];

/// Reads the text of the file, without white space around it.
///
/// # Errors
/// The file cannot be opened or read, is not UTF-8, or is longer than a setting can be.
pub fn read(path: &Path) -> io::Result<String> {
    for size in BUFFERS {
        let mut bytes = vec![0; size];
        let length = read_once(&mut File::open(path)?, &mut bytes)?;
        // If the buffer is full, the text may have been cut.
        if length < size {
            bytes.truncate(length);
            let text = String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok(text.trim().to_owned());
        }
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than any setting"))
}

/// Repeats read(2) only if a signal interrupted the call before it read anything.
fn read_once(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_below_1_mib_is_read_completely_and_a_longer_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("setting");
        for length in [0, 1, 31, 32, 33, 4094, 4095, 4096, 200_000, (1 << 20) - 1] {
            std::fs::write(&path, "7".repeat(length)).expect("written");
            assert_eq!(read(&path).map(|text| text.len()).ok(), Some(length));
        }
        assert!(read(Path::new("/dev/zero")).is_err_and(|error| error.kind() == io::ErrorKind::FileTooLarge));
        assert!(read(&folder.path().join("absent")).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }
}
