//! Parses the kernel's response to a change of an interface. The result is Ok only if the response is a message of type NLMSG_ERROR with
//! the errno 0, which is netlink's acknowledgement. If the result has an errno, it is that of the response.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::sys::rtnetlink::acknowledgement;
use twtool_fuzz::bounded;

/// The bytes of `struct nlmsghdr` that contain the type of the message. The length, a u32, comes before them.
const TYPE: std::ops::Range<usize> = 4..6;
/// The type of an error or an acknowledgement, as in linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
/// The position of the errno of `struct nlmsgerr`, after the header of 16 bytes. The errno is a negative number or 0.
const ERRNO: usize = 16;

fuzz_target!(|case: &[u8]| {
    let word = |at: usize| case.get(at..at + 4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    match bounded(case, || acknowledgement(case)) {
        Ok(()) => assert_eq!((&case[TYPE], word(ERRNO)), (&NLMSG_ERROR.to_ne_bytes()[..], Some(0))),
        Err(error) => assert!(
            error
                .raw_os_error()
                .is_none_or(|errno| word(ERRNO).is_some_and(|code| code < 0 && code.saturating_neg() == errno))
        ),
    }
});
