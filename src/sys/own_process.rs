//! Reads the memory use of this process (proc_pid_statm(5)).

use std::io;
use std::path::Path;

use super::errno::retry;
use super::file;

/// The resident memory of this process in bytes.
pub fn resident_bytes() -> io::Result<u64> {
    let text = retry(|| file::read(Path::new("/proc/self/statm"), 4096))?;
    let pages = str::from_utf8(&text).ok().and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok());
    let bytes = pages.zip(page).and_then(|(pages, page)| pages.checked_mul(page));
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/statm has an unknown format"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_between_100_kb_and_1_tib() {
        let bytes = resident_bytes().expect("it can be read");
        // A number of pages would be smaller.
        assert!((100_000..1 << 40).contains(&bytes), "{bytes}");
    }
}
