//! stevedore_objmapper
