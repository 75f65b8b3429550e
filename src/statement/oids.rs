//! OIDs of custom types: the same on every physical replica, so known once per cluster.

use std::collections::HashMap;

/// A type as Diesel names it: an optional schema and a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CustomType {
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
}

/// The OID of a type and of its array type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oids {
    pub(crate) oid: u32,
    pub(crate) array: u32,
}

/// The types that are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct OidMap(HashMap<CustomType, Oids>);

impl OidMap {
    pub(crate) fn get(&self, wanted: &CustomType) -> Option<Oids> {
        self.0.get(wanted).copied()
    }

    pub(crate) fn insert(&mut self, custom: CustomType, oids: Oids) {
        self.0.insert(custom, oids);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
