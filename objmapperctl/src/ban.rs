//! `ban`: invalidates the records that an expression matches. The expression is that of varnishd's command `ban`.

use std::time::Instant;

use objmapper_records::{Ban, DurationOf, NumberOper, Regexes, Subject, Test, TextOper};

use crate::failure::Failure;
use crate::options::{BanArguments, Options};
use crate::output::Out;
use crate::purge::open;
use crate::regex::Pcre2;
use crate::text::now;

pub(crate) fn run(options: &Options, arguments: &BanArguments, out: &mut Out) -> Result<(), Failure> {
    let tests = parse(&arguments.expression.join(" ")).map_err(Failure::Usage)?;
    let depends_on_time = |test: &Test| matches!(test, Test::Number { subject: DurationOf::Ttl | DurationOf::Age, .. });
    let ban = Ban { time: now(), timeless: !tests.iter().any(depends_on_time), tests };
    let records = open(options)?;
    records.announce_ban(&ban);
    // It is acknowledged when it is in the log: this process ends, and could not record it later.
    let end = Instant::now() + options.timeout;
    while records.pending_bans() > 0 {
        if Instant::now() >= end {
            return Err(Failure::Connection(format!(
                "the ban was not recorded within {:?}: the caches take it for lost, and invalidate all older records; remedy: give \
                 more --timeout, and see objmapperd's log",
                options.timeout
            )));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    out.line(format_args!("banned {ban}"))
}

/// Parses `FIELD OPERATOR VALUE [&& …]`. The error names the part that is wrong.
fn parse(text: &str) -> Result<Vec<Test>, String> {
    let words = words(text)?;
    let tests: Result<Vec<_>, _> = words.split(|word| word == "&&").map(parse_test).collect();
    tests.map_err(|why| {
        format!(
            "{text}: {why}; an expression is FIELD OPERATOR VALUE, more of them with && between them, \
         such as 'req.url ~ ^/news && obj.status == 200'"
        )
    })
}

/// Divides a text at white space outside of double quotes. A backslash takes a quote or a backslash inside of them as it is.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted && matches!(chars.peek(), Some('"' | '\\')) => {
                word.get_or_insert_default().extend(chars.next());
            }
            c if c.is_whitespace() && !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if is_quoted { Err(format!("{text}: a quote is not closed")) } else { Ok(words) }
}

fn parse_test(words: &[String]) -> Result<Test, String> {
    let [field, oper, value] = words else { return Err(format!("\"{}\" is no test", words.join(" "))) };
    let duration = match field.as_str() {
        "obj.ttl" => Some(DurationOf::Ttl),
        "obj.age" => Some(DurationOf::Age),
        "obj.grace" => Some(DurationOf::Grace),
        "obj.keep" => Some(DurationOf::Keep),
        _ => None,
    };
    if let Some(subject) = duration {
        let oper = match oper.as_str() {
            "==" => NumberOper::Equal,
            "!=" => NumberOper::NotEqual,
            ">" => NumberOper::Greater,
            ">=" => NumberOper::GreaterOrEqual,
            "<" => NumberOper::Less,
            "<=" => NumberOper::LessOrEqual,
            _ => return Err(format!("{oper}: {field} takes ==, !=, >, >=, <, <=")),
        };
        return Ok(Test::Number { subject, oper, number: seconds(value)? });
    }
    let name = |prefix| field.strip_prefix(prefix).filter(|name: &&str| !name.is_empty());
    let subject = match field.as_str() {
        "req.url" => Subject::Url,
        "obj.status" => Subject::Status,
        _ => match (name("req.http."), name("obj.http.")) {
            (Some(name), _) => Subject::RequestHeader(name.into()),
            (_, Some(name)) => Subject::ObjectHeader(name.into()),
            _ => {
                return Err(format!(
                    "{field}: no field; there are req.url, req.http.NAME, obj.http.NAME, obj.status, obj.ttl, obj.age, \
                     obj.grace and obj.keep"
                ));
            }
        },
    };
    let oper = match oper.as_str() {
        "==" => TextOper::Equal,
        "!=" => TextOper::NotEqual,
        "~" => TextOper::Match,
        "!~" => TextOper::NoMatch,
        _ => return Err(format!("{oper}: {field} takes ==, !=, ~, !~")),
    };
    if matches!(oper, TextOper::Match | TextOper::NoMatch) && Pcre2.compile(value.as_bytes()).is_none() {
        return Err(format!("{value}: no regular expression"));
    }
    Ok(Test::Text { subject, oper, text: value.as_bytes().to_vec() })
}

/// Parses a duration of VCL, such as `10s` or `1.5h`.
fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text}: no duration; give a number with ms, s, m, h, d, w or y, such as 10s");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        "y" => 31_536_000.0,
        _ => return Err(wrong()),
    };
    Some(number * unit).filter(|seconds| seconds.is_finite()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let shown = |text| {
            let tests = parse(text)?;
            Ok::<_, String>(Ban { time: 0.0, timeless: true, tests }.to_string())
        };
        for text in [
            "req.url ~ ^/news",
            "req.http.host == www.example.org && req.url != /",
            "obj.http.x-tag !~ (a|b) && obj.status == 404",
            "obj.age > 60s && obj.ttl <= 1.5s",
        ] {
            assert_eq!(shown(text), Ok(text.to_owned()));
        }
        assert_eq!(shown(r#"obj.http.X == "two \"words\"""#), Ok(r#"obj.http.X == two \"words\""#.to_owned()));
        assert_eq!(shown("obj.grace == 2m"), Ok("obj.grace == 120s".to_owned()));
        for (text, word) in [
            ("", "no test"),
            ("req.url ~", "no test"),
            ("req.url ~ a &&", "no test"),
            ("req.uri ~ a", "req.uri"),
            ("req.http. ~ a", "req.http."),
            ("req.url > a", "takes =="),
            ("obj.ttl ~ 1s", "takes =="),
            ("obj.ttl > 1", "no duration"),
            ("req.url ~ (", "no regular expression"),
            ("req.url ~ \"a", "not closed"),
        ] {
            assert!(shown(text).is_err_and(|why| why.contains(word)), "{text}");
        }
    }
}
