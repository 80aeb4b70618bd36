//! Parses lines of /proc/net/tcp and tcp6. A socket has the values in its line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twtool::model::socket::Socket;
use twtool::sys::proc_net_tcp::parse;
use twtool_fuzz::bounded;

/// The hexadecimal text of an address and a port, as in the file.
fn end(bits: u128, port: u16, digits: usize) -> String {
    let octets = bits.to_be_bytes();
    let addr = if digits == 8 { &octets[12..] } else { &octets[..] };
    let word = |word: &[u8]| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    format!("{}:{port:X}", addr.chunks(4).map(word).collect::<String>())
}

fuzz_target!(|case: &[u8]| {
    let Ok(text) = std::str::from_utf8(case) else { return };
    for line in text.lines() {
        let Some(socket) = bounded(line.as_bytes(), || parse(line)) else { continue };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let tuple = socket.tuple();
        for (word, bits, port) in [
            (words[1], tuple.local_bits(), tuple.local_port().0),
            (words[2], tuple.remote_bits(), tuple.remote_port().0),
        ] {
            let (addr, typed) = word.split_once(':').expect("an end");
            let typed = typed.trim_start_matches('0');
            let typed = if typed.is_empty() { "0" } else { typed };
            assert_eq!(
                end(bits, port, addr.len()),
                format!("{}:{}", addr.to_uppercase(), typed.to_uppercase()),
                "{line}"
            );
        }
        let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        assert_eq!(number(words[3]), socket.state() as u64, "{line}");
        let (timer, when) = words[5].split_once(':').expect("a timer");
        assert_eq!(timer == "03", matches!(socket, Socket::Bucket(_)), "{line}");
        if let Socket::Bucket(bucket) = socket {
            assert_eq!(u64::from(bucket.expires_ms), number(when) * 10, "{line}");
        }
    }
});
