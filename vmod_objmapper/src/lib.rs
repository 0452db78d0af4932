//! vmod_objmapper
