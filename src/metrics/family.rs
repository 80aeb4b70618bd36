//! Every metric family: its name, type, labels and help. docs/metrics.md has the same table, and a test compares both.

/// The type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that goes up and down.
    Gauge,
    /// A number that only grows, or starts again at 0.
    Counter,
    /// The value is 1, and the labels have the information.
    Info,
}

impl MetricKind {
    /// The name of the type in the text format 0.0.4, which has no type for [`MetricKind::Info`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gauge | Self::Info => "gauge",
            Self::Counter => "counter",
        }
    }
}

macro_rules! families {
    ($($family:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        /// A family of samples. Names and labels are an interface for dashboards and alerts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the help of each family is its documentation")]
        pub enum MetricFamily {
            $($family,)*
        }

        impl MetricFamily {
            /// All families, in the order of the output.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$family),*];

            /// The name of the family.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$family => $name,)* }
            }

            /// The type of the family.
            #[must_use]
            pub const fn kind(self) -> MetricKind {
                match self { $(Self::$family => MetricKind::$kind,)* }
            }

            /// The names of the labels.
            #[must_use]
            pub const fn labels(self) -> &'static [&'static str] {
                match self { $(Self::$family => &[$($label),*],)* }
            }

            /// The help text, without line feeds, backslashes and quotation marks.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$family => $help,)* }
            }
        }
    };
}

families! {
    TimewaitSockets = "twtool_timewait_sockets", Gauge, ["netns", "state", "direction", "class"],
        "Timewait buckets of the kernel by state (time-wait or fin-wait-2), by the inferred direction of the connection, and by the RFC 6335 class of the local port.";
    TimewaitMax = "twtool_timewait_sockets_max", Gauge, ["netns"],
        "The setting net.ipv4.tcp_max_tw_buckets. If the setting is negative, Linux 6.1 and later have no maximum (+Inf), 5.10 and earlier keep no bucket (0), and for the versions between them there is no sample.";
    TimewaitMemory = "twtool_timewait_memory_bytes", Gauge, ["netns"],
        "Kernel memory of the timewait buckets; an estimate unless twtool runs as root.";
    TimewaitCreated = "twtool_timewait_created_total", Counter, ["netns"],
        "Timewait buckets that the kernel has created (TW and TWKilled of /proc/net/netstat). Only on Linux 6.1 and later: 5.10 counts buckets when they end, and the versions between them were not measured.";
    TimewaitOverflow = "twtool_timewait_overflow_total", Counter, ["netns"],
        "Closes after which the kernel kept no bucket, usually because net.ipv4.tcp_max_tw_buckets was reached (TCPTimeWaitOverflow).";
    TimewaitRecycled = "twtool_timewait_recycled_total", Counter, ["netns"],
        "Buckets that connect() has taken over (TWRecycled).";
    PawsRejected = "twtool_paws_rejected_total", Counter, ["netns", "state"],
        "Segments that the kernel rejected because of an old TCP timestamp, by the state of the socket (PAWSActive, PAWSEstab, PAWSTimewait).";
    ClosesPerSecond = "twtool_closes_per_second", Gauge, ["netns", "direction"],
        "Closes per second that entered TIME_WAIT, mean of the last minute.";
    ServerPortSockets = "twtool_server_port_timewait_sockets", Gauge, ["netns", "local_port"],
        "TIME_WAIT sockets of inbound connections, for the server ports with the most of them. The label value others has the sum over all other ports.";
    ServerPortCloses = "twtool_server_port_closes_per_second", Gauge, ["netns", "local_port"],
        "Closes per second of inbound connections that entered TIME_WAIT: the TIME_WAIT sockets of the port divided by the time that TIME_WAIT lasts.";
    EphemeralPorts = "twtool_ephemeral_ports", Gauge, ["netns"],
        "Ports in net.ipv4.ip_local_port_range.";
    EphemeralReserved = "twtool_ephemeral_reserved_ports", Gauge, ["netns"],
        "Ports of the ephemeral range that are in net.ipv4.ip_local_reserved_ports. connect() never chooses them.";
    EphemeralBound = "twtool_ephemeral_bound_ports", Gauge, ["netns"],
        "Ports of the ephemeral range that are not reserved and that are known to be bound explicitly. connect() never chooses them.";
    EphemeralUncertain = "twtool_ephemeral_uncertain_ports", Gauge, ["netns"],
        "Ports of the ephemeral range that are not reserved and for which it is unknown whether a socket bound them explicitly. They count as free.";
    PoolPorts = "twtool_ephemeral_pool_ports", Gauge, ["netns"],
        "Ports from which connect() can choose: the ephemeral range without reserved and explicitly bound ports. Each destination can use all of them.";
    Destinations = "twtool_destinations", Gauge, ["netns"],
        "Destinations with a connection or a TIME_WAIT socket on an ephemeral port. A destination is a local address, a remote address and a remote port.";
    DestinationPool = "twtool_destination_pool_ports", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "Ports from which connect() can choose for the destination.";
    DestinationOpen = "twtool_destination_open_connections", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "Connections to the destination in any state except TIME_WAIT, on ephemeral ports.";
    DestinationTimewait = "twtool_destination_timewait_sockets", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "TIME_WAIT sockets of the destination, on ephemeral ports.";
    DestinationReusable = "twtool_destination_reusable_sockets", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "TIME_WAIT sockets of the destination that connect() can take over now.";
    DestinationFree = "twtool_destination_free_ports", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "How many more connections to the destination would get a port now. The label value others has the minimum over all other destinations.";
    DestinationUncertain = "twtool_destination_uncertain_ports", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "By how much the number of free ports of the destination may be too high.";
    DestinationCloses = "twtool_destination_closes_per_second", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "Closes per second of connections to the destination that entered TIME_WAIT, mean of the last minute.";
    DestinationCeiling = "twtool_destination_ceiling_per_second", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "The highest rate of closes per second to the destination at which the ports never run out: ports divided by the time that a TIME_WAIT socket holds its port.";
    DestinationExhaustion = "twtool_destination_exhaustion_seconds", Gauge, ["netns", "local_addr", "interface", "remote_addr", "remote_port"],
        "Time until the destination has no free port at the present rate of closes (measured over at most the last 10 s), an inference; +Inf if that does not happen.";
    UnreservedServers = "twtool_unreserved_server_ports", Gauge, ["netns"],
        "Server ports inside the ephemeral range that are not reserved. While such a server is down, connect() may take its port.";
    UnreservedServer = "twtool_unreserved_server_info", Info, ["netns", "local_port", "process", "unit", "container"],
        "A server port inside the ephemeral range that is not reserved, with its owner if this user may see it.";
    CloseWait = "twtool_close_wait_sockets", Gauge, ["netns"],
        "Sockets in CLOSE_WAIT: the peer has closed the connection, and the program has not.";
    CloseWaitSilent = "twtool_close_wait_silent_sockets", Gauge, ["netns", "process", "unit", "container"],
        "Sockets in CLOSE_WAIT that received no ACK for the time of --close-wait-after (60 s), by owner. Ten or more of one owner are usually a leak.";
    CloseWaitNotAccepted = "twtool_close_wait_not_accepted_sockets", Gauge, ["netns", "local_port"],
        "Sockets in CLOSE_WAIT that received no ACK for the time of --close-wait-after (60 s) and that the server on the port has not accepted.";
    CloseWaitUnknown = "twtool_close_wait_unknown_owner_sockets", Gauge, ["netns"],
        "Sockets in CLOSE_WAIT that received no ACK for the time of --close-wait-after (60 s) and whose owner this user may not see (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH show it).";
    DoctorCheck = "twtool_doctor_check", Gauge, ["netns", "check", "status"],
        "The checks of twtool doctor as a state set: 1 for the present status of the check, 0 for the others.";
    TracedCloses = "twtool_traced_closes_total", Counter, ["netns", "process", "unit", "container", "role"],
        "Connections that this machine closed first, since the exporter started, by container and unit of the process (its name if it has neither) and by role; only with --trace.";
    ConntrackEntries = "twtool_conntrack_entries", Gauge, ["netns"],
        "Connections that netfilter tracks.";
    ConntrackMax = "twtool_conntrack_entries_max", Gauge, ["netns"],
        "The setting net.netfilter.nf_conntrack_max; +Inf if it is 0, because then there is no maximum.";
    NetnsInfo = "twtool_netns_info", Info, ["netns", "inode", "process"],
        "A network namespace with its inode number. If the namespace has no name of ip netns: also its process with the lowest pid.";
    Complete = "twtool_complete", Gauge, ["netns"],
        "1 if nothing is missing from the samples of the network namespace, 0 otherwise.";
    CollectionComplete = "twtool_collection_complete", Gauge, [],
        "1 if every network namespace was read completely, 0 otherwise.";
    Namespaces = "twtool_namespaces", Gauge, [],
        "Network namespaces that were read.";
    NamespacesOmitted = "twtool_namespaces_omitted", Gauge, [],
        "Network namespaces above --max-netns, which have no samples.";
    CollectionTime = "twtool_collection_timestamp_seconds", Gauge, [],
        "When the samples were collected, in seconds since 1970.";
    CollectorDuration = "twtool_collector_duration_seconds", Gauge, ["collector"],
        "Duration of the parts of the collection, summed over all network namespaces: settings, sockets and owners.";
    DumpRepeats = "twtool_dump_repeats_total", Counter, [],
        "Lists of sockets that were read again, because the kernel marked them as interrupted.";
    DumpRecovered = "twtool_dump_recovered_sockets_total", Counter, [],
        "Sockets that the first list did not contain and a second list did, because the first list lost them or they were new.";
    TraceLost = "twtool_trace_lost_closes_total", Counter, [],
        "Closes that are missing from twtool_traced_closes_total, because the exporter did not read them in time; only with --trace.";
    TraceSkipped = "twtool_trace_skipped_closes_total", Counter, [],
        "Upper bound of the closes that are missing or have no process because the BPF program was already running on the processor; they are not part of twtool_trace_lost_closes_total; only with --trace.";
    BuildInfo = "twtool_build_info", Info, ["version"],
        "The version of twtool.";
    ProcessCpu = "twtool_process_cpu_seconds_total", Counter, [],
        "Processor time of twtool itself.";
    ProcessMemory = "twtool_process_resident_memory_bytes", Gauge, [],
        "Resident memory of twtool itself.";
    ProcessStart = "twtool_process_start_time_seconds", Gauge, [],
        "When twtool started, in seconds since 1970.";
    ExporterCollections = "twtool_exporter_collections_total", Counter, [],
        "Collections of the exporter. One collection can serve several scrapes.";
    ExporterFailures = "twtool_exporter_failed_collections_total", Counter, [],
        "Collections of the exporter that gave no samples.";
    ExporterConnections = "twtool_exporter_connections", Gauge, [],
        "Open connections to the exporter.";
    ExporterClosed = "twtool_exporter_closed_connections_total", Counter, ["reason"],
        "Connections that the exporter closed by itself: because of a timeout, or to make room for a new one.";
    ExporterRequests = "twtool_exporter_requests_total", Counter, ["code"],
        "Requests to the exporter by the status code of the response.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let names: BTreeSet<&str> = MetricFamily::ALL.iter().map(|family| family.name()).collect();
        assert_eq!(names.len(), MetricFamily::ALL.len(), "a name occurs twice");
        for family in MetricFamily::ALL {
            let (name, kind) = (family.name(), family.kind());
            assert!(name.starts_with("twtool_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), kind == MetricKind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), kind == MetricKind::Info, "{name}");
            assert!(!["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)), "{name}");
            assert!(family.help().ends_with('.') && !family.help().contains(['\n', '\\', '"']), "{name}");
            for label in family.labels() {
                assert!(
                    label.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !label.starts_with("__"),
                    "{label}"
                );
                // Prometheus adds `job` and `instance` to every series, and reserves `le` and `quantile` for histograms and summaries.
                assert!(!["job", "instance", "le", "quantile"].contains(label), "{label}");
            }
        }
    }
}
