//! A request of varnishd's, as the second cache level reads it.

use objmapper_records::RequestView;
use varnishd::http::View;

/// The head of a request.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a>(pub(crate) View<'a>);

impl RequestView for Request<'_> {
    fn url(&self) -> &[u8] {
        self.0.url()
    }

    fn header(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.header(name)
    }
}
