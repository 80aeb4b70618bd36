//! Keeps the cookies of all sockets of a dump in little memory.

use crate::model::socket::Cookie;

/// The number of bits of a difference (see [`CookieList`]) in one byte. The highest bit of the byte is set if more bytes follow.
const BITS: u32 = 7;

/// Cookies in the order in which they were added. Most sockets get their cookie when they are first listed, so most cookies are
/// slightly larger than the previous cookie. The list keeps the differences, most of which take one byte.
#[derive(Default)]
pub(super) struct CookieList {
    bytes: Vec<u8>,
    last: u64,
    length: usize,
}

impl CookieList {
    pub(super) fn push(&mut self, cookie: Cookie) {
        let difference = cookie.number().wrapping_sub(self.last).cast_signed();
        self.last = cookie.number();
        self.length += 1;
        // Zigzag encoding: a small negative difference becomes a small positive number.
        let mut rest = (difference << 1 ^ difference >> 63).cast_unsigned();
        while rest >= 1 << BITS {
            self.bytes.push(rest.to_le_bytes()[0] | 1 << BITS);
            rest >>= BITS;
        }
        self.bytes.push(rest.to_le_bytes()[0]);
    }

    pub(super) fn into_sorted(self) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(self.length);
        numbers.extend(self.numbers());
        numbers.sort_unstable();
        numbers
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let mut last = 0_u64;
        self.bytes.split_inclusive(|byte| byte >> BITS == 0).map(move |bytes| {
            let value = bytes.iter().rev().fold(0_u64, |value, byte| value << BITS | u64::from(byte & !(1 << BITS)));
            let difference = (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
            last = last.wrapping_add(difference.cast_unsigned());
            last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(numbers: &[u64]) -> CookieList {
        let mut list = CookieList::default();
        numbers.iter().filter_map(|&number| Cookie::new(number)).for_each(|cookie| list.push(cookie));
        list
    }

    #[test]
    fn consecutive_cookies_take_one_byte_each() {
        let numbers: Vec<u64> = (1 << 40..).take(1000).collect();
        let list = list(&numbers);
        assert!(list.numbers().eq(numbers));
        assert!(list.bytes.len() < 1010, "{} bytes", list.bytes.len());
    }

    proptest! {
        #[test]
        fn a_list_returns_the_cookies_that_were_added(numbers in proptest::collection::vec(1..=u64::MAX, 0..50)) {
            prop_assert!(list(&numbers).numbers().eq(numbers.iter().copied()));
            let sorted = list(&numbers).into_sorted();
            prop_assert!(sorted.is_sorted() && sorted.len() == numbers.len());
            prop_assert!(numbers.iter().all(|number| sorted.binary_search(number).is_ok()));
        }
    }
}
