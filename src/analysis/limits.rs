//! The limits of the history of the last minute: which closes the history cannot show, and the evidence for each limit.

use super::groups::StateCounts;
use super::history::{History, LengthSource, RemainingTimes, SECONDS};
use crate::model::kernel_counts::BucketFacts;

/// A reason why the history may differ from what happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The name that scripts see.
    pub id: &'static str,
    /// The number that is the evidence for this limit; `None` if the limit has no number, or the number is unknown.
    pub count: Option<u64>,
    /// Whether there is evidence for this limit now. Otherwise, the limit applies to every history.
    pub found: bool,
    /// The explanation for the user.
    pub text: String,
}

/// The limits of a history, in this order: `namespace_limits` (limits of single network namespaces), limits with evidence, and limits
/// that always apply.
#[must_use]
pub fn collect_limits(
    totals: StateCounts,
    times: &RemainingTimes,
    history: &History,
    kernel: &BucketFacts,
    namespace_limits: Vec<Limit>,
    one_family: bool,
) -> Vec<Limit> {
    let found = |id, count, text| Limit { id, count, found: true, text };
    let mut limits = namespace_limits;
    limits.extend(kernel.counter("TCPTimeWaitOverflow").filter(|count| *count > 0).map(|count| {
        let text = format!(
            "TCPTimeWaitOverflow is {count}: after {} the kernel kept no bucket, usually because tcp_max_tw_buckets was reached. The \
             counter does not show when these closes happened.",
            if count == 1 { "1 close".into() } else { format!("{count} closes") }
        );
        found("overflow", Some(count), text)
    }));
    limits.extend(length(history));
    limits.extend((totals.fin_wait_2 > 0).then(|| {
        let text =
            "The minute does not contain FIN_WAIT_2 buckets: they enter TIME_WAIT, with a fresh timer, when the peer closes."
                .to_owned();
        found("fin-wait-2", Some(totals.fin_wait_2.into()), text)
    }));
    limits.extend((times.due() > 0).then(|| {
        let text = format!(
            "The minute does not contain buckets with 0 s left: they entered TIME_WAIT more than {} s ago, and the kernel \
             removes them at the next step of its timer wheel.",
            history.length.seconds
        );
        found("due", Some(times.due()), text)
    }));
    limits.extend(
        one_family.then(|| found("one-family", None, "Only buckets of one IP version were counted.".to_owned())),
    );
    limits.push(gone_early(kernel));
    limits.push(Limit {
        id: "re-armed",
        count: None,
        found: false,
        text: "A retransmitted FIN restarts the timer of a bucket. Such a bucket counts in the second of the restart."
            .into(),
    });
    limits.push(Limit {
        id: "active-closer",
        count: None,
        found: false,
        text: "Only the end that closes first keeps a bucket. Closes that the other machine began, and resets, leave \
               no bucket here."
            .into(),
    });
    limits
}

/// The limit that applies if tcp_max_tw_buckets is reached. The kernel compares this setting with the number of buckets in both states
/// (`inet_twsk_alloc` in net/ipv4/inet_timewait_sock.c).
///
/// `negative_is_none` is `Facts::negative_maximum_is_none`.
pub(super) fn at_maximum(totals: StateCounts, kernel: &BucketFacts, negative_is_none: Option<bool>) -> Option<Limit> {
    let count = totals.all().max(kernel.sockstat.map_or(0, |sockstat| sockstat.tw));
    let most = kernel.max_tw_buckets?;
    let reached = u64::try_from(most).map_or(negative_is_none == Some(false), |most| count >= most);
    if !reached {
        return None;
    }
    let text = if most <= 0 {
        format!(
            "tcp_max_tw_buckets is {most}: the kernel keeps no bucket after a close, so the minute contains no closes."
        )
    } else {
        format!(
            "tcp_max_tw_buckets ({most}) is reached: the kernel keeps no bucket after further closes, so the minute does \
             not contain them."
        )
    };
    Some(Limit { id: "at-maximum", count: Some(count), found: true, text })
}

/// The limit that applies if namespaces have different values of `tcp_tw_timeout`, a setting of some vendors' kernels.
#[must_use]
pub fn lengths_differ() -> Limit {
    let text =
        "The network namespaces have different values of net.ipv4.tcp_tw_timeout, but the minute assumes one length of \
         TIME_WAIT for all. Run twtool summary separately for each namespace."
            .to_owned();
    Limit { id: "length", count: None, found: true, text }
}

fn length(history: &History) -> Option<Limit> {
    let seconds = history.length.seconds;
    let mut text = match history.length.source {
        LengthSource::Constant => return None,
        LengthSource::Setting => format!("TIME_WAIT lasts {seconds} s here, by net.ipv4.tcp_tw_timeout."),
        LengthSource::LargestRemaining => format!(
            "A bucket has more time left than the kernel's constant or setting allows, so TIME_WAIT lasts at least {seconds} s \
             here. If TIME_WAIT lasts longer, the minute shows every close later than it happened."
        ),
    };
    if history.covered() < SECONDS {
        text += " The buckets of the older seconds are gone, so these seconds are unknown.";
    }
    Some(Limit { id: "length", count: Some(seconds.into()), found: true, text })
}

fn gone_early(kernel: &BucketFacts) -> Limit {
    let recycled = kernel.counter("TWRecycled");
    let taken = match recycled {
        Some(count) => format!("taken over by connect() (tcp_tw_reuse; TWRecycled is {count})"),
        None => "taken over by connect() (tcp_tw_reuse)".into(),
    };
    let text = format!(
        "The minute does not contain buckets that ended early: {taken} or by a SYN from their peer, ended by a reset, \
         or destroyed."
    );
    Limit { id: "gone-early", count: recycled, found: recycled.is_some_and(|count| count > 0), text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::history::Length;
    use crate::model::kernel_counts::{TcpExt, TcpSockstat};

    fn ids(
        totals: StateCounts,
        expires_ms: &[u32],
        kernel: &BucketFacts,
        one_family: bool,
    ) -> Vec<(&'static str, Option<u64>)> {
        let mut times = RemainingTimes::default();
        for ms in expires_ms {
            times.add(*ms);
        }
        let history = History::from_remaining_times(&times, Length::learn(kernel.tw_timeout_s, times.largest_ms()));
        let at_maximum = at_maximum(totals, kernel, Some(true)).into_iter().collect();
        collect_limits(totals, &times, &history, kernel, at_maximum, one_family)
            .iter()
            .map(|limit| (limit.id, limit.count))
            .collect()
    }

    #[test]
    fn a_negative_maximum_is_a_limit_only_if_the_kernel_then_keeps_no_bucket() {
        let kernel = BucketFacts { max_tw_buckets: Some(-1), ..BucketFacts::default() };
        let limit = |none| at_maximum(StateCounts::default(), &kernel, none).map(|limit| limit.text);
        assert_eq!((limit(Some(true)), limit(None)), (None, None));
        assert!(
            limit(Some(false))
                .is_some_and(|text| text.contains("tcp_max_tw_buckets is -1: the kernel keeps no bucket"))
        );
    }

    const ALWAYS: [(&str, Option<u64>); 3] = [("gone-early", None), ("re-armed", None), ("active-closer", None)];

    #[test]
    fn without_evidence_only_the_general_limits_are_reported() {
        assert_eq!(ids(StateCounts::default(), &[60_000], &BucketFacts::default(), false), ALWAYS);
    }

    #[test]
    fn each_limit_is_reported_if_there_is_evidence() {
        let counters = [("TCPTimeWaitOverflow".to_owned(), 4), ("TWRecycled".to_owned(), 5)];
        let kernel = BucketFacts {
            max_tw_buckets: Some(3),
            tw_timeout_s: Some(20),
            sockstat: Some(TcpSockstat { inuse: 0, orphan: 0, tw: 3, alloc: 0, mem: 0 }),
            tcp_ext: Some(TcpExt(counters.into_iter().collect())),
            bucket_bytes: None,
        };
        let expected = [
            ("at-maximum", Some(3)),
            ("overflow", Some(4)),
            ("length", Some(20)),
            ("fin-wait-2", Some(1)),
            ("due", Some(1)),
            ("one-family", None),
            ("gone-early", Some(5)),
            ("re-armed", None),
            ("active-closer", None),
        ];
        assert_eq!(ids(StateCounts { time_wait: 1, fin_wait_2: 1 }, &[0], &kernel, true), expected);
    }
}
