//! The HTML page at `/`: the present state in a few tables, from the same samples as the metrics.

use std::fmt::Write as _;

use crate::metrics::samples::SampleValue;
use crate::metrics::{MetricFamily, Samples};

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>twtool exporter</title>\n<style>\n\
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222; background: #fff }\n\
table { border-collapse: collapse; margin: 0.5em 0 1.5em } th, td { padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }\n\
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } .warning { color: #a00; font-weight: bold }\n\
</style>\n</head>\n<body>\n<h1>twtool exporter</h1>\n<p><a href=\"/metrics\">metrics</a> · <a href=\"/-/healthy\">health</a></p>\n";

pub(super) fn html(samples: &Samples) -> String {
    let mut page = HEAD.to_owned();
    let complete =
        samples.of(MetricFamily::CollectionComplete).iter().all(|(_, value)| *value == SampleValue::Integer(1));
    if !complete {
        page.push_str(
            "<p class=\"warning\">The numbers are incomplete. The log of the exporter has the reasons.</p>\n",
        );
    }
    sockets(&mut page, samples);
    destinations(&mut page, samples);
    warnings(&mut page, samples);
    page.push_str("</body>\n</html>\n");
    page
}

fn sockets(page: &mut String, samples: &Samples) {
    page.push_str("<h2>Network namespaces</h2>\n<table>\n<tr><th>Namespace</th><th class=\"n\">TIME_WAIT</th><th class=\"n\">FIN_WAIT_2</th>\
                   <th class=\"n\">Closes/s</th><th class=\"n\">Ports for connect()</th><th class=\"n\">CLOSE_WAIT</th></tr>\n");
    for (labels, _) in samples.of(MetricFamily::NetnsInfo) {
        let netns = &labels[0];
        let count = |state: &str| {
            let rows = samples.of(MetricFamily::TimewaitSockets).iter();
            let rows = rows.filter(|(labels, _)| labels[0] == *netns && labels[1] == state);
            sum(rows.map(|(_, value)| float(*value)))
        };
        let closes = sum(of_netns(samples, MetricFamily::ClosesPerSecond, netns));
        let first = |family| of_netns(samples, family, netns).next();
        row(
            page,
            &[
                HtmlCell::Text(netns),
                HtmlCell::Number(count("time-wait")),
                HtmlCell::Number(count("fin-wait-2")),
                HtmlCell::Number(closes),
                HtmlCell::Number(first(MetricFamily::PoolPorts)),
                HtmlCell::Number(first(MetricFamily::CloseWait)),
            ],
        );
    }
    page.push_str("</table>\n");
}

fn destinations(page: &mut String, samples: &Samples) {
    page.push_str("<h2>Destinations</h2>\n");
    let is_known = |netns: &String| of_netns(samples, MetricFamily::Destinations, netns).next().is_some();
    let all_known = samples.of(MetricFamily::NetnsInfo).iter().all(|(labels, _)| is_known(&labels[0]));
    if !all_known {
        page.push_str("<p>The destinations of at least one network namespace are unknown.</p>\n");
    }
    if samples.of(MetricFamily::DestinationFree).is_empty() {
        if all_known {
            page.push_str("<p>There is no outbound connection on an ephemeral port.</p>\n");
        }
        return;
    }
    page.push_str("<table>\n<tr><th>Namespace</th><th>From</th><th>To</th><th class=\"n\">Free ports</th><th class=\"n\">TIME_WAIT</th>\
                   <th class=\"n\">Open</th><th class=\"n\">Closes/s</th><th>No port left</th></tr>\n");
    for (labels, free) in samples.of(MetricFamily::DestinationFree) {
        let same = |family: MetricFamily| {
            let found = samples.of(family).iter().find(|(others, _)| others == labels);
            found.map(|(_, value)| float(*value))
        };
        let exhausted = match same(MetricFamily::DestinationExhaustion) {
            Some(seconds) if seconds.is_finite() => format!("in {seconds:.0} s"),
            // As in `twtool capacity`: the model covers only connections that close. So without closes it predicts nothing.
            Some(_) if same(MetricFamily::DestinationCloses) == Some(0.0) => "no closes".into(),
            Some(_) => "not at this rate".into(),
            None => "unknown".into(),
        };
        let to = if labels[3].contains(':') {
            format!("[{}]:{}", labels[3], labels[4])
        } else {
            format!("{}:{}", labels[3], labels[4])
        };
        row(
            page,
            &[
                HtmlCell::Text(&labels[0]),
                HtmlCell::Text(&labels[1]),
                HtmlCell::Text(&to),
                HtmlCell::Number(Some(float(*free))),
                HtmlCell::Number(same(MetricFamily::DestinationTimewait)),
                HtmlCell::Number(same(MetricFamily::DestinationOpen)),
                HtmlCell::Number(same(MetricFamily::DestinationCloses)),
                HtmlCell::Text(&exhausted),
            ],
        );
    }
    page.push_str("</table>\n");
}

fn warnings(page: &mut String, samples: &Samples) {
    page.push_str("<h2>Warnings</h2>\n");
    let set = samples.of(MetricFamily::DoctorCheck).iter();
    let warnings: Vec<_> =
        set.filter(|(labels, value)| labels[2] == "warning" && *value == SampleValue::Integer(1)).collect();
    if warnings.is_empty() {
        page.push_str("<p>No check of twtool doctor has a warning.</p>\n");
        return;
    }
    page.push_str(
        "<p>To see the reason and what helps, run <code>twtool doctor</code> in the network namespace.</p>\n<table>\n\
                   <tr><th>Namespace</th><th>Check</th></tr>\n",
    );
    for (labels, _) in warnings {
        row(page, &[HtmlCell::Text(&labels[0]), HtmlCell::Warning(&labels[1])]);
    }
    page.push_str("</table>\n");
}

enum HtmlCell<'a> {
    Text(&'a str),
    Warning(&'a str),
    /// `None` means that the number is unknown.
    Number(Option<f64>),
}

fn row(page: &mut String, cells: &[HtmlCell]) {
    page.push_str("<tr>");
    for cell in cells {
        // `write!` to a String does not fail.
        let _ = match cell {
            HtmlCell::Text(text) => write!(page, "<td>{}</td>", escape_html(text)),
            HtmlCell::Warning(text) => write!(page, "<td class=\"warning\">{}</td>", escape_html(text)),
            HtmlCell::Number(Some(number)) if number.fract() == 0.0 => write!(page, "<td class=\"n\">{number:.0}</td>"),
            HtmlCell::Number(Some(number)) => write!(page, "<td class=\"n\">{number:.1}</td>"),
            HtmlCell::Number(None) => write!(page, "<td class=\"n\">unknown</td>"),
        };
    }
    page.push_str("</tr>\n");
}

fn escape_html(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

fn of_netns<'a>(samples: &'a Samples, family: MetricFamily, netns: &'a str) -> impl Iterator<Item = f64> + 'a {
    samples.of(family).iter().filter(move |(labels, _)| labels[0] == netns).map(|(_, value)| float(*value))
}

/// The sum; `None` without numbers, because an unknown number has no sample.
fn sum(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    numbers.reduce(|sum, number| sum + number)
}

#[expect(clippy::cast_precision_loss, reason = "counts of sockets are far below 2^52")]
const fn float(value: SampleValue) -> f64 {
    match value {
        SampleValue::Integer(number) => number as f64,
        SampleValue::Float(number) => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_the_page() {
        let mut samples = Samples::default();
        let evil = "<script>alert('x')</script>&\"";
        samples.add(MetricFamily::NetnsInfo, [evil, "1", evil], true);
        samples.add(MetricFamily::DoctorCheck, [evil, "destinations", "warning"], true);
        samples.add(MetricFamily::DestinationFree, [evil, evil, "", evil, evil], 5_u64);
        let page = html(&samples);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "{page}");
        assert!(page.contains("<td class=\"warning\">destinations</td>"), "{page}");
    }

    #[test]
    fn an_unknown_number_is_not_shown_as_none() {
        let mut samples = Samples::default();
        samples.add(MetricFamily::NetnsInfo, ["net:[1]", "1", ""], true);
        let page = html(&samples);
        assert!(page.contains("destinations of at least one network namespace are unknown"), "{page}");
        assert!(!page.contains("There is no outbound connection") && !page.contains(">0<"), "{page}");
        samples.add(MetricFamily::Destinations, ["net:[1]"], 0_u64);
        let page = html(&samples);
        assert!(page.contains("There is no outbound connection") && !page.contains("are unknown"), "{page}");
    }
}
