//! Encodes samples in two text formats: 0.0.4, which Prometheus and the textfile collector of node_exporter read, and OpenMetrics 1.0.0.

use std::fmt::Write as _;

use super::family::{MetricFamily, MetricKind};
use super::samples::{SampleValue, Samples};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl MetricsFormat {
    /// The HTTP content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that a client with this Accept header prefers. By RFC 9110, section 12.5.1, the most specific media range that matches a
    /// format decides. Without a header, or without a preference, the format is 0.0.4.
    #[must_use]
    pub fn accepted(header: Option<&str>) -> Self {
        let ranges: Vec<Range> = header.unwrap_or_default().split(',').map(Range::parse).collect();
        let quality = |matching: [&str; 3], version: fn(&str) -> bool| {
            let stated = |name: &str| {
                let covers = |range: &&Range| range.name == name && range.version.is_none_or(version);
                ranges.iter().filter(covers).map(|range| range.quality).reduce(f32::max)
            };
            matching.into_iter().find_map(stated).unwrap_or(0.0)
        };
        let text = quality(["text/plain", "text/*", "*/*"], |version| version == "0.0.4");
        let open =
            quality(["application/openmetrics-text", "application/*", "*/*"], |version| version.starts_with("1."));
        if open > text { Self::OpenMetrics } else { Self::Text }
    }
}

/// A media range of an Accept header, like `text/*;q=0.5`.
struct Range<'a> {
    name: String,
    version: Option<&'a str>,
    /// The preference of the client, from 0 (not acceptable) to 1.
    quality: f32,
}

impl<'a> Range<'a> {
    fn parse(part: &'a str) -> Self {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<&str> = words.collect();
        let parameter = |name: &str| parameters.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let quality = parameter("q").map_or(Some(1.0), |q| q.parse().ok()).unwrap_or(0.0);
        Self { name, version: parameter("version"), quality }
    }
}

/// Encodes all families that have a sample.
#[must_use]
pub fn encode(samples: &Samples, format: MetricsFormat) -> String {
    let mut text = encode_part(samples, format);
    if format == MetricsFormat::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

/// Encodes all families that have a sample, without the line `# EOF` that ends OpenMetrics, so that further families can follow.
#[must_use]
pub fn encode_part(samples: &Samples, format: MetricsFormat) -> String {
    let mut text = String::with_capacity(samples.count() * 120);
    for (family, rows) in samples.families() {
        head(&mut text, family, format);
        for (labels, value) in rows {
            text.push_str(family.name());
            append_labels(&mut text, family.labels(), labels);
            append_value(&mut text, *value);
            text.push('\n');
        }
    }
    text
}

/// Appends the lines `# HELP`, `# TYPE` and, in OpenMetrics, `# UNIT` if the name ends with a unit. In OpenMetrics, these lines have
/// the name without `_total` or `_info`.
fn head(text: &mut String, family: MetricFamily, format: MetricsFormat) {
    let (name, kind, help) = (family.name(), family.kind(), family.help());
    let (name, type_name) = match (format, kind) {
        (MetricsFormat::Text, MetricKind::Counter) => (name, "counter"),
        (MetricsFormat::OpenMetrics, MetricKind::Counter) => (name.strip_suffix("_total").unwrap_or(name), "counter"),
        (MetricsFormat::OpenMetrics, MetricKind::Info) => (name.strip_suffix("_info").unwrap_or(name), "info"),
        (_, MetricKind::Gauge | MetricKind::Info) => (name, "gauge"),
    };
    // `write!` to a String does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {type_name}");
    if format == MetricsFormat::OpenMetrics
        && let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")))
    {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
}

fn append_labels(text: &mut String, names: &[&str], values: &[String]) {
    let mut open = '{';
    // An empty label is the same as an absent one.
    for (name, value) in names.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
        text.push(open);
        open = ',';
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    if open == ',' {
        text.push('}');
    }
    text.push(' ');
}

fn append_value(text: &mut String, value: SampleValue) {
    let _ = match value {
        SampleValue::Integer(number) => write!(text, "{number}"),
        SampleValue::Float(number) if number == f64::INFINITY => write!(text, "+Inf"),
        SampleValue::Float(number) => write!(text, "{number}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        samples.add(MetricFamily::BuildInfo, ["1.2.3"], 1_u64);
        samples.add(MetricFamily::TimewaitOverflow, ["a\"b\\c\nd"], 7_u64);
        samples.add(MetricFamily::DestinationExhaustion, ["web", "10.0.0.1", "", "10.0.0.2", "443"], f64::INFINITY);
        samples
    }

    #[test]
    fn both_formats_are_written_as_specified() {
        let text = encode(&samples(), MetricsFormat::Text);
        assert!(text.contains("# TYPE twtool_build_info gauge\ntwtool_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE twtool_timewait_overflow_total counter\n"), "{text}");
        assert!(text.contains("\ntwtool_timewait_overflow_total{netns=\"a\\\"b\\\\c\\nd\"} 7\n"), "{text}");
        assert!(
            text.contains("local_addr=\"10.0.0.1\",remote_addr=\"10.0.0.2\",remote_port=\"443\"} +Inf\n"),
            "{text}"
        );
        assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");

        let open = encode(&samples(), MetricsFormat::OpenMetrics);
        assert!(open.contains("# TYPE twtool_build info\ntwtool_build_info{"), "{open}");
        assert!(open.contains("# TYPE twtool_timewait_overflow counter\ntwtool_timewait_overflow_total{"), "{open}");
        assert!(open.contains("\n# UNIT twtool_destination_exhaustion_seconds seconds\n"), "{open}");
        assert!(open.ends_with("\n# EOF\n"), "{open}");
    }

    #[test]
    fn openmetrics_is_written_only_for_a_client_that_prefers_it() {
        let prometheus_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                               text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let others_less = "application/openmetrics-text;q=0.5, */*;q=0.1";
        for header in [prometheus_2_42, "application/openmetrics-text", others_less, "application/*"] {
            assert_eq!(MetricsFormat::accepted(Some(header)), MetricsFormat::OpenMetrics, "{header}");
        }
        for header in [
            None,
            Some("*/*"),
            Some("text/html,*/*;q=0.8"),
            Some("text/plain;version=0.0.4"),
            Some("application/openmetrics-text;version=0.0.1"),
            Some("application/openmetrics-text;q=0.1, text/plain;q=0.9"),
            Some("application/openmetrics-text;q=0.5, */*;q=0.8"),
            Some("application/openmetrics-text;q=0.5, text/*;q=0.8, */*;q=0.1"),
            Some("application/openmetrics-text;q=0"),
            Some("application/openmetrics-text;q=x"),
            Some(";;,,q=1"),
        ] {
            assert_eq!(MetricsFormat::accepted(header), MetricsFormat::Text, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn no_label_value_begins_another_line(value: String) {
            let mut samples = Samples::default();
            samples.add(MetricFamily::Complete, [value.clone()], 1_u64);
            let text = encode(&samples, MetricsFormat::Text);
            // The three lines are `# HELP`, `# TYPE` and the sample. In this format, a carriage return does not end a line.
            prop_assert_eq!(text.matches('\n').count(), 3);
            let line = text.lines().last().unwrap_or_default();
            prop_assert!(line.starts_with("twtool_complete") && text.ends_with(" 1\n"));
        }

        #[test]
        fn any_accept_header_chooses_a_format(header: String) {
            let _ = MetricsFormat::accepted(Some(&header));
        }
    }
}
