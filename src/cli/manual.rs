//! Manual pages in the language of man(7): one for the program, and one for each command.
//!
//! A page contains the texts of the long help, in the order of man-pages(7). The text below the options of the help has three
//! parts: the paragraph "Exit codes:" becomes EXIT STATUS, the list "Examples:" becomes EXAMPLES, and the other paragraphs
//! are appended to DESCRIPTION. Words in the help select the entries of FILES and SEE ALSO. So a new command needs no entry here.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::{Arg, Command};

/// The date in the head of each page: the last day on which the texts were revised as a whole.
const DATE: &str = "2026-11-29";

/// Files that twtool reads, one per line: words, the path, and the content. The page of a command lists a file if the help of the
/// command contains one of the words.
const FILES: &str = "\
service | /etc/services | Names of ports (services(5)). For a namespace NAME of ip-netns(8), /etc/netns/NAME/services if it exists
--netns | /run/netns | Names of network namespaces (ip-netns(8))
--netns | /proc/PID/ns/net | The network namespace of a process (namespaces(7))
--netns,--pid | /proc/net/tcp, /proc/net/tcp6 | TCP sockets, if the kernel refuses sock_diag(7) and the command can do without it
--netns,--pid | /proc/sys/net/ipv4 | Settings of a network namespace: port ranges and TCP
--netns,--pid | /proc/PID/fd | The sockets of a process, if the answer names processes
--netns,--pid | /proc/PID/cgroup, /sys/fs/cgroup | Units and containers of processes, if the answer names processes or --container \
is given (cgroups(7))
--netns,--pid | /etc/passwd | Names of users, if the answer names processes (passwd(5))";

/// The pages in SEE ALSO of every page.
const RELATED: [&str; 4] = ["twtool(1)", "tcp(7)", "socket(7)", "ss(8)"];

/// The further pages in SEE ALSO of twtool(1), the page of the program.
const RELATED_TO_ALL: [&str; 6] = ["services(5)", "namespaces(7)", "sock_diag(7)", "ip(7)", "ip-netns(8)", "sysctl(8)"];

pub(super) struct Page {
    /// The name without the section, like `twtool-list`.
    pub(super) name: String,
    pub(super) text: String,
}

/// The page of the program, followed by the pages of its commands.
pub(super) fn pages(mut program: Command) -> Vec<Page> {
    program.build();
    let names: Vec<&str> = visible(&program).map(Command::get_name).collect();
    std::iter::once(&program).chain(visible(&program)).map(|command| page(command, &program, &names)).collect()
}

fn visible(program: &Command) -> impl Iterator<Item = &Command> {
    program.get_subcommands().filter(|command| !command.is_hide_set())
}

fn page(command: &Command, program: &Command, names: &[&str]) -> Page {
    let is_program = command.get_name() == program.get_name();
    let name = if is_program {
        program.get_name().to_owned()
    } else {
        format!("{}-{}", program.get_name(), command.get_name())
    };
    let help = command.clone().render_long_help().to_string();
    let notes = Notes::of(command);
    let mut page = Writer::default();
    let title = escape(&name.to_uppercase());
    let version = program.get_version().unwrap_or_default();
    page.line(&format!(".TH {title} 1 {DATE} \"twtool {version}\" \"User Commands\""));
    // Hyphenation would change commands, and justified text has gaps.
    page.line(".nh");
    page.line(".ad l");

    page.section("NAME");
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    page.line(&format!("{} \\- {}", escape(&name), escape(&about)));
    page.section("SYNOPSIS");
    page.synopsis(&command.clone().render_usage().to_string());
    page.section("DESCRIPTION");
    page.paragraphs(&command.get_long_about().map_or_else(|| format!("{about}."), ToString::to_string));
    notes.description.iter().for_each(|paragraph| page.paragraph(paragraph));
    if is_program {
        page.section("COMMANDS");
        for command in visible(program) {
            page.item(&format!("{}(1)", bold(&format!("twtool-{}", command.get_name()))));
            page.text(&command.get_about().map(ToString::to_string).unwrap_or_default());
        }
    }
    page.options(command);
    page.section("EXIT STATUS");
    page.exit_status(&notes.exit_status.or_else(|| Notes::of(program).exit_status).unwrap_or_default());
    let files = FILES.lines().map(|line| line.split(" | ").collect::<Vec<_>>());
    let files: Vec<_> =
        files.filter(|fields| is_program || fields[0].split(',').any(|word| help.contains(word))).collect();
    if !files.is_empty() {
        page.section("FILES");
    }
    for fields in files {
        page.item(&italic(fields[1]));
        page.text(fields[2]);
    }
    page.section("EXAMPLES");
    notes.examples.iter().for_each(|example| page.example(example));
    page.section("SEE ALSO");
    page.references(&references(&help, &name, names, if is_program { &RELATED_TO_ALL } else { &[] }));
    Page { name, text: page.0 }
}

/// The text below the options of the long help, divided into the sections of a page.
#[derive(Default)]
struct Notes {
    description: Vec<String>,
    exit_status: Option<String>,
    /// The lines of the list "Examples:". Each line has a command, and usually an explanation after at least two blanks.
    examples: Vec<String>,
}

impl Notes {
    fn of(command: &Command) -> Self {
        let mut notes = Self::default();
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        for paragraph in text.split("\n\n") {
            if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
                notes.examples =
                    examples.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
            } else if let Some(codes) = paragraph.strip_prefix("Exit codes: ") {
                notes.exit_status = Some(codes.to_owned());
            } else {
                notes.description.push(paragraph.to_owned());
            }
        }
        notes
    }
}

/// The pages in [`RELATED`] and `more`, and the pages and documents that a text mentions: `tcp(7)`, `twtool list`, RFC 6335. `own` is the
/// name of the page that contains the text; the result does not contain this page. `names` are the commands of twtool.
fn references(help: &str, own: &str, names: &[&str], more: &[&str]) -> Vec<String> {
    let mut pages: BTreeSet<String> = RELATED.iter().chain(more).map(ToString::to_string).collect();
    let mut documents = BTreeSet::new();
    let words: Vec<&str> = help.split(|c: char| c.is_whitespace() || "`,;:'".contains(c)).collect();
    for pair in words.windows(2) {
        let page = pair[0].trim_start_matches('(').trim_end_matches('.');
        // "bind()" and "bind(0)" are not pages, and "(tcp(7))." mentions one.
        if let Some((name, section)) = page.split_once('(')
            && section.starts_with(|c: char| matches!(c, '1'..='9'))
            && !name.is_empty()
        {
            pages.insert(format!("{name}({})", &section[..1]));
        }
        if pair[0] == "twtool" && names.contains(&pair[1]) && !help.contains(&format!("Usage: twtool {}", pair[1])) {
            pages.insert(format!("twtool-{}(1)", pair[1]));
        }
        let number = pair[1].trim_end_matches(['.', ')']);
        if pair[0].trim_start_matches('(') == "RFC" && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        {
            documents.insert(format!("RFC {number}"));
        }
    }
    pages.remove(&format!("{own}(1)"));
    let mut pages: Vec<String> = pages.into_iter().collect();
    let section = |page: &String| page.rsplit('(').next().map(str::to_owned);
    pages.sort_by_key(section);
    pages.into_iter().chain(documents).collect()
}

/// Writes a page in the language of man(7), in which a line that begins with a full stop is a command, called a *request*.
#[derive(Default)]
struct Writer(String);

impl Writer {
    fn line(&mut self, line: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn section(&mut self, title: &str) {
        let title = if title.contains(' ') { format!("\"{title}\"") } else { title.to_owned() };
        self.line(&format!(".SH {title}"));
    }

    /// A line of text, in which words between backquotes become bold.
    fn text(&mut self, text: &str) {
        let marked = |(number, part): (usize, &str)| if number % 2 == 1 { bold(part) } else { escape(part) };
        let line: String = text.split('`').enumerate().map(marked).collect();
        // A full stop at the beginning would make the line a request. So would an apostrophe, which `escape` replaces.
        let guard = if line.starts_with('.') { "\\&" } else { "" };
        self.line(&format!("{guard}{line}"));
    }

    fn paragraphs(&mut self, text: &str) {
        text.split("\n\n").for_each(|paragraph| self.paragraph(paragraph));
    }

    /// Adds space before a paragraph, except at the beginning of a section.
    fn space(&mut self) {
        let last = self.0.lines().next_back().unwrap_or_default();
        if !last.starts_with(".S") {
            self.line(".PP");
        }
    }

    /// A paragraph. Lines that begin with "  - " are the entries of a list.
    fn paragraph(&mut self, text: &str) {
        let mut in_list = true;
        for line in text.lines() {
            let entry = line.strip_prefix("  - ");
            match entry {
                Some(_) => self.line(".IP \\(bu 2"),
                None if in_list => self.space(),
                None => {}
            }
            in_list = entry.is_some();
            self.text(entry.unwrap_or(line));
        }
    }

    /// The head of an entry in a list; its text follows.
    fn item(&mut self, head: &str) {
        self.line(".TP");
        self.line(head);
    }

    /// Writes the usage line that clap renders: literal words in bold, placeholders in italics.
    fn synopsis(&mut self, usage: &str) {
        let usage = usage.trim_start_matches("Usage:").trim();
        for (number, form) in usage.lines().map(str::trim).enumerate() {
            if number > 0 {
                self.line(".br");
            }
            let words = form.split(' ').map(|word| {
                let placeholder = word.starts_with('[') || word.starts_with('<');
                let name = word.trim_matches(|c: char| "[<>].".contains(c));
                match (placeholder || word.ends_with(">...]"), word.split_once(name)) {
                    (_, Some((before, after))) if placeholder && name == "--" => {
                        format!("{before}{}{after}", bold(name))
                    }
                    (true, Some((before, after))) => {
                        let bracket = |text: &str| text.replace(['<', '>'], "");
                        format!("{}{}{}", bracket(before), italic(name), bracket(after))
                    }
                    _ => bold(word),
                }
            });
            let line = words.collect::<Vec<_>>().join(" ");
            self.line(&line);
        }
    }

    /// The arguments, then the options by their headings, in the order of the help.
    fn options(&mut self, command: &Command) {
        let mut arguments: Vec<&Arg> = command.get_arguments().filter(|argument| !argument.is_hide_set()).collect();
        arguments.sort_by_key(|argument| (!argument.is_positional(), argument.get_display_order()));
        self.section("OPTIONS");
        let mut headings: Vec<Option<&str>> = vec![];
        for argument in &arguments {
            if !headings.contains(&argument.get_help_heading()) {
                headings.push(argument.get_help_heading());
            }
        }
        headings.sort_by_key(Option::is_some);
        for heading in headings {
            if let Some(heading) = heading {
                self.line(&format!(".SS \"{}\"", escape(heading)));
            }
            arguments.iter().filter(|one| one.get_help_heading() == heading).for_each(|one| self.option(one));
        }
    }

    fn option(&mut self, argument: &Arg) {
        let short = argument.get_short().map(|short| bold(&format!("-{short}")));
        let long = argument.get_long().map(|long| bold(&format!("--{long}")));
        let mut head = short.into_iter().chain(long).collect::<Vec<_>>().join(", ");
        if argument.is_positional() || argument.get_action().takes_values() {
            let named = argument.get_value_names().unwrap_or_default().iter().map(|name| italic(name));
            head += if argument.is_positional() { "" } else { " " };
            head += &named.collect::<Vec<_>>().join(" ");
        }
        self.item(&head);
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let takes_values = argument.is_positional() || argument.get_action().takes_values();
        let default = if takes_values && !default.is_empty() && !argument.is_hide_default_value_set() {
            format!(" [default: {}]", default.join(","))
        } else {
            String::new()
        };
        for (number, paragraph) in (help + &default).split("\n\n").enumerate() {
            if number > 0 {
                self.line(".IP");
            }
            self.text(&paragraph.replace('\n', " "));
        }
        let values = if takes_values { argument.get_possible_values() } else { vec![] };
        let values: Vec<_> = values.iter().filter(|value| !value.is_hide_set()).collect();
        if !values.is_empty() {
            self.line(".RS");
            for value in values {
                self.item(&bold(value.get_name()));
                self.text(&value.get_help().map(ToString::to_string).unwrap_or_default());
            }
            self.line(".RE");
        }
    }

    /// A list of the codes in a text like "0 yes, 1 no. With --quiet: 0 any, 1 none".
    fn exit_status(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let (sentence, after) = rest.split_once(". ").unwrap_or((rest.trim_end_matches('.'), ""));
            rest = after;
            let (condition, codes) = match sentence.split_once(": ") {
                Some((condition, codes)) => (Some(condition), codes),
                None => (None, sentence),
            };
            if let Some(condition) = condition {
                self.space();
                self.text(&format!("{condition}:"));
            }
            for (code, meaning) in exit_codes(codes) {
                if let Some(code) = code {
                    self.item(&bold(code));
                } else {
                    self.space();
                }
                self.text(&meaning);
            }
        }
    }

    fn example(&mut self, example: &str) {
        let (command, explanation) = split_explanation(example);
        self.space();
        self.line(".nf");
        self.line(&bold(command));
        self.line(".fi");
        if !explanation.is_empty() {
            self.line(".RS 4");
            self.text(explanation);
            self.line(".RE");
        }
    }

    fn references(&mut self, references: &[String]) {
        for (number, reference) in references.iter().enumerate() {
            let comma = if number + 1 < references.len() { "," } else { "" };
            let line = match reference.split_once('(') {
                Some((name, section)) => format!("{}({section}{comma}", bold(name)),
                None => format!("{reference}{comma}"),
            };
            self.line(&line);
        }
    }
}

/// Separates a command from its explanation, which follows at least two blanks outside of quotes.
fn split_explanation(example: &str) -> (&str, &str) {
    let mut quote = None;
    let mut before = 'x';
    for (at, c) in example.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ' ') if before == ' ' => return (example[..at].trim_end(), example[at..].trim_start()),
            _ => {}
        }
        before = c;
    }
    (example, "")
}

/// The codes and their meanings in a list like "0 yes, 1 no, or not". A part without a number belongs to the meaning before it.
fn exit_codes(list: &str) -> Vec<(Option<&str>, String)> {
    let mut codes: Vec<(Option<&str>, String)> = vec![];
    for part in list.split_inclusive([',', ';']) {
        let trimmed = part.trim_start();
        match trimmed.split_once(' ') {
            Some((code, meaning)) if code.bytes().all(|b| b.is_ascii_digit()) => {
                codes.push((Some(code), meaning.to_owned()));
            }
            _ => match codes.last_mut() {
                Some((_, meaning)) => meaning.push_str(part),
                None => codes.push((None, trimmed.to_owned())),
            },
        }
    }
    for (_, meaning) in &mut codes {
        meaning.truncate(meaning.trim_end_matches([',', ';']).len());
    }
    codes
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escape(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escape(text))
}

/// Escapes what troff interprets or replaces by typographic characters, so that a command can be copied from the page.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_separated_from_its_explanation() {
        assert_eq!(split_explanation("twtool list 'a  b'   print a"), ("twtool list 'a  b'", "print a"));
        assert_eq!(split_explanation("twtool list"), ("twtool list", ""));
    }

    #[test]
    fn exit_codes_keep_commas_in_their_meanings() {
        let text = "0 gone, 1 nothing, 2 otherwise, including no";
        let expected = [(Some("0"), "gone"), (Some("1"), "nothing"), (Some("2"), "otherwise, including no")];
        assert_eq!(exit_codes(text), expected.map(|(code, meaning)| (code, meaning.to_owned())));
        let other = exit_codes("its exit code, 126 if it cannot be run");
        assert_eq!(other, [(None, "its exit code".to_owned()), (Some("126"), "if it cannot be run".to_owned())]);
    }

    #[test]
    fn text_is_escaped_for_troff() {
        let mut page = Writer::default();
        page.text(".hidden 'a\\b' and `ip netns`~^");
        assert_eq!(page.0, "\\&.hidden \\(aqa\\eb\\(aq and \\fBip netns\\fR\\(ti\\(ha\n");
    }

    #[test]
    fn pages_and_rfcs_in_a_text_become_references() {
        let found = references("see (tcp(7)). `twtool wait 80` (RFC 1337), bind() x", "twtool-list", &["wait"], &[]);
        assert_eq!(found, ["twtool(1)", "twtool-wait(1)", "socket(7)", "tcp(7)", "ss(8)", "RFC 1337"]);
    }
}
