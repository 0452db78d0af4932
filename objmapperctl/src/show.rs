//! `show`: an object, and of a record what a cache would make of it now.

use std::os::unix::ffi::OsStrExt;

use objmapper_client::{BodyPath, Entry, ObjUri};
use objmapper_records::{Contents, Head, Headers, Judgement, Object, Response, Standing, Variants};
use serde_json::{Map, Value, json};

use crate::argument::Request;
use crate::failure::Failure;
use crate::list::{flags, to_json};
use crate::options::ShowArguments;
use crate::output::Out;
use crate::regex::Pcre2;
use crate::store::Store;
use crate::text::{date, duration, insert_bytes, now, printable, seconds};

/// What is known of an object.
struct Shown {
    uri: ObjUri<'static>,
    object: Object,
    /// Of a record: the head that counts, its own or that of its renewal, and what a cache would make of it.
    judged: Option<Judgement>,
    now: f64,
}

pub(crate) fn run(store: &Store, arguments: &ShowArguments, out: &mut Out) -> Result<(), Failure> {
    let target = &arguments.target;
    let uri = target.uri(&store.inspector)?;
    let object = store.inspector.find(&uri)?.ok_or_else(|| absent(store, &uri))?;
    let Contents::Index(variants) = &object.contents else {
        return show(store, arguments, uri, object, out);
    };
    let request = Request::new(variants.text(), store.inspector.prefix(), &target.header);
    let variant = store.variant(variants, &request)?;
    if arguments.json {
        // One object: the variant that answers, or else the index.
        return match variant {
            Some((uri, object)) => show(store, arguments, uri, object, out),
            None => show(store, arguments, uri, object, out),
        };
    }
    show(store, arguments, uri, object, out)?;
    out.line("")?;
    match variant {
        Some((uri, object)) => show(store, arguments, uri, object, out),
        None => out.line("no variant for these request headers; give those of another one with --header 'Name: value'"),
    }
}

/// The failure of a look-up that finds nothing.
pub(crate) fn absent(store: &Store, uri: &ObjUri<'_>) -> Failure {
    let text = printable(uri.as_bytes());
    if store.is_v01() {
        return Failure::No(format!(
            "{text}: there is none; a v0.1 peer cannot say so without creating it, and now has an empty object there"
        ));
    }
    Failure::No(format!("{text}: there is none"))
}

impl Store {
    /// Returns the variant that answers a request, if there is one.
    pub(crate) fn variant(
        &self,
        variants: &Variants,
        request: &Request<'_>,
    ) -> Result<Option<(ObjUri<'static>, Object)>, Failure> {
        for uri in self.inspector.variants(variants, request) {
            if let Some(object) = self.inspector.find(&uri)? {
                return Ok(Some((uri, object)));
            }
        }
        Ok(None)
    }
}

fn show(
    store: &Store,
    arguments: &ShowArguments,
    uri: ObjUri<'static>,
    object: Object,
    out: &mut Out,
) -> Result<(), Failure> {
    let now = now();
    let judged = match &object.contents {
        Contents::Record(record) => {
            let varied = record.vary.iter().flatten().filter_map(|header| {
                Some((String::from_utf8(header.name.clone()).ok()?, String::from_utf8(header.value.clone()?).ok()?))
            });
            // The request that selects this variant, as far as it is known.
            let headers: Vec<_> = arguments.target.header.iter().cloned().chain(varied).collect();
            let request = Request::new(&record.text, store.inspector.prefix(), &headers);
            store.inspector.judge(&uri, &object, &request, &Pcre2, now)?
        }
        _ => None,
    };
    let shown = Shown { uri, object, judged, now };
    if arguments.json { out.line(Value::from(shown.to_json())) } else { shown.write(out) }
}

/// Returns the kind of an object.
fn kind(contents: &Contents) -> &'static str {
    match contents {
        Contents::Plain => "plain object",
        Contents::Record(_) => "record",
        Contents::Renewal(_) => "renewal",
        Contents::Index(_) => "index of variants",
        Contents::Log => "invalidation log",
        Contents::Damaged(_) => "damaged",
    }
}

/// Returns one word for what a cache would make of a record, and the reason in words.
fn reason(head: &Head, standing: &Standing, now: f64) -> (&'static str, String) {
    let end_of_ttl = head.t_origin + f64::from(head.ttl);
    let end_of_grace = end_of_ttl + f64::from(head.grace);
    match standing {
        Standing::Fresh => ("fresh", format!("for {}", duration(end_of_ttl - now))),
        Standing::Grace => (
            "stale",
            format!(
                "its ttl ended {} ago; in grace for {}: served while it is revalidated, or the origin is down",
                duration(now - end_of_ttl),
                duration(end_of_grace - now)
            ),
        ),
        Standing::Renewable => (
            "stale",
            format!(
                "its grace ended {} ago; kept for {}: a 304 of the origin renews it",
                duration(now - end_of_grace),
                duration(head.end() - now)
            ),
        ),
        Standing::Expired if now >= head.end() => {
            ("expired", format!("its ttl, grace and keep ended {} ago: a miss", duration(now - head.end())))
        }
        Standing::Expired => (
            "expired",
            format!("its grace ended {} ago, and it has no validator for a 304: a miss", duration(now - end_of_grace)),
        ),
        Standing::FromTheFuture => {
            ("refused", "its origin made it in the future, by the clock of this machine: a miss".to_owned())
        }
        Standing::Foreign => ("refused", "a v0.1 client has written it, and may still change it: a miss".to_owned()),
        Standing::Outdated => ("refused", "an older version of the director has published it: a miss".to_owned()),
        Standing::Invalidated(why) => ("invalidated", format!("{why}: a miss")),
    }
}

impl Shown {
    fn write(&self, out: &mut Out) -> Result<(), Failure> {
        out.row("uri", printable(self.uri.as_bytes()))?;
        out.row("kind", kind(&self.object.contents))?;
        let body = self.object.body_len();
        out.row("size", format_args!("{} bytes, {body} of them body", self.object.length))?;
        if let Some(entry) = &self.object.entry {
            self.write_entry(entry, out)?;
        }
        match &self.object.contents {
            Contents::Damaged(why) => out.row("damage", why),
            Contents::Index(variants) => {
                out.row("key", printable(variants.text()))?;
                for names in variants.specs() {
                    out.row("vary", printable(&names.join(&b", "[..])))?;
                }
                Ok(())
            }
            Contents::Record(response) | Contents::Renewal(response) => self.write_response(response, out),
            Contents::Plain | Contents::Log => Ok(()),
        }
    }

    fn write_entry(&self, entry: &Entry, out: &mut Out) -> Result<(), Failure> {
        let path = BodyPath::new(entry.object);
        out.row("tier", format_args!("{}, file {}, version {}", entry.tier, path.as_str(), entry.version))?;
        out.row("stored", date(seconds(entry.mtime), self.now))?;
        match entry.expires {
            0 => out.row("expires", "never")?,
            expires => out.row("expires", date(seconds(expires), self.now))?,
        }
        out.row("flags", flags(entry))
    }

    fn write_response(&self, response: &Response, out: &mut Out) -> Result<(), Failure> {
        out.row("key", printable(&response.text))?;
        for header in response.vary.iter().flatten() {
            let value = header.value.as_deref().map_or("(absent)".to_owned(), printable);
            out.row("variant", format_args!("{}: {value}", printable(&header.name)))?;
        }
        if !response.tags.is_empty() {
            let tags: Vec<_> = response.tags.iter().map(|tag| printable(tag)).collect();
            out.row("tags", tags.join(" "))?;
        }
        match response.sum {
            Some(sum) => out.row("checksum", format_args!("XXH3 {:016x}; 'objmapperctl verify' compares it", sum.0))?,
            None if response.renews.is_none() => out.row("checksum", "none")?,
            None => {}
        }
        let (head, judged) = match &self.judged {
            Some(judged) => (&judged.response.head, Some(judged)),
            None => (&response.head, None),
        };
        if let Some(judged) = judged {
            let (word, reason) = reason(head, &judged.standing, self.now);
            out.row("state", format_args!("{word}: {reason}"))?;
            if let Some(why) = &judged.soft_purge {
                out.row("softly", format_args!("{why}: it has ended the ttl"))?;
            }
            if judged.renewed {
                out.row("renewed", "by a 304; what follows is of the renewal")?;
            }
        }
        out.row("made", date(head.t_origin, self.now))?;
        let times = [("ttl", head.ttl), ("grace", head.grace), ("keep", head.keep)];
        let times = times.map(|(name, time)| format!("{name} {}", duration(f64::from(time))));
        out.row("times", times.join(", "))?;
        out.line("")?;
        out.line(format_args!("{} {}", head.status, printable(&head.reason)))?;
        for line in head.headers.iter() {
            out.line(printable(line))?;
        }
        if let Some(origin) = &head.origin {
            out.line("")?;
            out.line(format_args!("as the origin sent it: {} {}", origin.status, printable(&origin.reason)))?;
            for line in origin.headers.iter() {
                out.line(printable(line))?;
            }
        }
        Ok(())
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut object = match &self.object.entry {
            Some(entry) => to_json(&self.uri, entry),
            None => {
                let mut object = Map::new();
                insert_bytes(&mut object, "uri", self.uri.as_bytes());
                object.insert("length".to_owned(), self.object.length.into());
                object
            }
        };
        object.insert("kind".to_owned(), kind(&self.object.contents).into());
        object.insert("body".to_owned(), self.object.body_len().into());
        match &self.object.contents {
            Contents::Damaged(why) => {
                object.insert("damage".to_owned(), why.as_str().into());
            }
            Contents::Index(variants) => {
                insert_bytes(&mut object, "key", variants.text());
                let specs = variants.specs();
                let specs =
                    specs.iter().map(|names| names.iter().map(|n| String::from_utf8_lossy(n)).collect::<Vec<_>>());
                object.insert("vary".to_owned(), json!(specs.collect::<Vec<_>>()));
            }
            Contents::Record(response) | Contents::Renewal(response) => self.insert_response(response, &mut object),
            Contents::Plain | Contents::Log => {}
        }
        object
    }

    fn insert_response(&self, response: &Response, object: &mut Map<String, Value>) {
        insert_bytes(object, "key", &response.text);
        let head = self.judged.as_ref().map_or(&response.head, |judged| &judged.response.head);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let vary = response.vary.as_ref().map(|headers| {
            let pairs = headers.iter().map(|header| (text(&header.name), header.value.as_deref().map(text).into()));
            pairs.collect::<Map<String, Value>>()
        });
        let lines = |headers: &Headers| headers.iter().map(text).collect::<Vec<_>>();
        let origin = head.origin.as_ref().map(|origin| {
            json!({ "status": origin.status, "reason": text(&origin.reason), "headers": lines(&origin.headers) })
        });
        let fields = json!({
            "vary": vary,
            "tags": response.tags.iter().map(|tag| text(tag)).collect::<Vec<_>>(),
            "checksum": response.sum.map(|sum| format!("{:016x}", sum.0)),
            "status": head.status,
            "reason": text(&head.reason),
            "headers": lines(&head.headers),
            "origin": origin,
            "made": head.t_origin,
            "age": head.age(self.now),
            "ttl": head.ttl,
            "grace": head.grace,
            "keep": head.keep,
        });
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        if let Some(judged) = &self.judged {
            let (word, reason) = reason(head, &judged.standing, self.now);
            object.insert("state".to_owned(), word.into());
            object.insert("why".to_owned(), reason.into());
            object.insert("renewed".to_owned(), judged.renewed.into());
            object.insert("soft_purge".to_owned(), judged.soft_purge.clone().into());
        }
    }
}

/// Returns the name of an argument for an error.
pub(crate) fn name(text: &std::ffi::OsStr) -> String {
    printable(text.as_bytes())
}
