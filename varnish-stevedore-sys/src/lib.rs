//! varnish-stevedore-sys
