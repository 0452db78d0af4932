//! Requests as a browser would make them, with everything of the response kept for comparison.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result};

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// A client that reuses connections. Cloning it shares them.
#[derive(Debug, Clone)]
pub struct Client(ureq::Agent);

/// How a request is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Additional headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// Instead of GET, without a body: `HEAD`, `PURGE`.
    pub method: Option<&'a str>,
    /// Take this many bytes at a time, with a pause after each: a slow reader.
    pub slowly: Option<(usize, Duration)>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that waits at most a minute for a response and takes every status as an answer.
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(60)))
            .http_status_as_error(false)
            .max_redirects(0)
            .allow_non_standard_methods(true)
            .build();
        Self(config.into())
    }

    /// GETs `url` whole.
    pub fn fetch(&self, url: &str) -> Result<Response> {
        self.send(url, &Request::default())
    }

    /// Makes the request and reads the response to its end; a response shorter than its length is an
    /// error.
    pub fn send(&self, url: &str, request: &Request<'_>) -> Result<Response> {
        let mut builder = ureq::http::Request::builder().method(request.method.unwrap_or("GET")).uri(url);
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        let response = self.0.run(builder.body(())?).with_context(|| format!("request for {url}"))?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        let mut reader = response.into_body().into_reader();
        let mut body = Vec::new();
        let read = match request.slowly {
            None => reader.read_to_end(&mut body).map(drop),
            Some((piece, pause)) => read_slowly(&mut reader, &mut body, piece, pause),
        };
        read.with_context(|| format!("body of {url} after {} bytes", body.len()))?;
        Ok(Response { status, headers, body })
    }
}

fn read_slowly(reader: &mut impl Read, body: &mut Vec<u8>, piece: usize, pause: Duration) -> std::io::Result<()> {
    let mut buffer = vec![0; piece];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        body.extend_from_slice(&buffer[..n]);
        // Not a wait for something: the pace of this client is what is tested.
        std::thread::sleep(pause);
    }
}
