//! Parses the kernel's response to a change of an interface. Any bytes give an acknowledgement or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::sys::rtnetlink::acknowledgement;
use twtool_fuzz::bounded;

fuzz_target!(|case: &[u8]| {
    let word = |at: usize| case.get(at..at + 4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    match bounded(case, || acknowledgement(case)) {
        Ok(()) => assert_eq!((&case[4..6], word(16)), (&2_u16.to_ne_bytes()[..], Some(0))),
        Err(error) => assert!(
            error
                .raw_os_error()
                .is_none_or(|errno| word(16).is_some_and(|code| code < 0 && code.saturating_neg() == errno))
        ),
    }
});
