//! Composite types that columns contain, at any depth: what the places in their values' texts mean.
//!
//! A composite's text has no names, so a sink can only tell by these that its own type has the same attributes in the same places.
//! Versions of older builds say nothing of them.

use serde::{Deserialize, Serialize};

use super::{Column, TypeKind, TypeName};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Composite {
    pub oid: u32,
    /// In the order of their values.
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attribute {
    pub name: String,
    #[serde(rename = "type")]
    pub of: TypeName,
}

impl Attribute {
    /// The attribute as a column would be.
    pub fn column(&self) -> Column {
        Column {
            name: self.name.clone(),
            type_oid: self.of.oid,
            type_name: self.of.name.clone(),
            typmod: self.of.typmod,
            kind: self.of.kind.clone(),
            nullable: true,
            default: None,
            key: None,
            exact: true,
        }
    }
}

/// The composite that a type is in the end, below its domains and arrays; `None` for anything else.
pub fn innermost(oid: u32, kind: &TypeKind) -> Option<u32> {
    match kind {
        TypeKind::Composite => Some(oid),
        TypeKind::Array { element, .. } => innermost(element.oid, &element.kind),
        TypeKind::Domain { base } => innermost(base.oid, &base.kind),
        TypeKind::Base | TypeKind::Enum { .. } | TypeKind::Range | TypeKind::Multirange => None,
    }
}

/// Those of `all` that the columns contain, in the order of their OIDs.
pub fn contained(columns: &[Column], all: &[Composite]) -> Vec<Composite> {
    contained_in(columns.iter().map(|column| (column.type_oid, &column.kind)), all)
}

/// The same of types.
pub fn contained_in<'a>(types: impl Iterator<Item = (u32, &'a TypeKind)>, all: &[Composite]) -> Vec<Composite> {
    let mut open: Vec<u32> = types.filter_map(|(oid, kind)| innermost(oid, kind)).collect();
    let mut found: Vec<&Composite> = Vec::new();
    while let Some(oid) = open.pop() {
        let Some(composite) = all.iter().find(|composite| composite.oid == oid) else { continue };
        if found.iter().all(|known| known.oid != oid) {
            open.extend(composite.attributes.iter().filter_map(|a| innermost(a.of.oid, &a.of.kind)));
            found.push(composite);
        }
    }
    found.sort_by_key(|composite| composite.oid);
    found.into_iter().cloned().collect()
}
