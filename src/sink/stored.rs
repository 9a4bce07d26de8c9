//! What a column holds in the end: the type below its domains and arrays, with the modifier that is in force.
//!
//! Source and sink are compared by this and not by the names of their domains: a domain of the same name may be made of another
//! type, or of one with less room, and would round without a word; one that the sink lacks holds nothing but its base's
//! values. Pure.

use crate::relation::{Column, TypeKind};

/// The innermost type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// As [`Column::type_name`].
    pub name: String,
    /// -1 when there is none.
    pub typmod: i32,
    /// How many arrays are around it.
    pub arrays: u32,
    /// `pg_type.typtype`: b base, e enum, c composite, r range, m multirange.
    pub kind: char,
    /// Of an enum, in their order.
    pub labels: Vec<String>,
}

impl Stored {
    /// What the source's column holds.
    pub fn of(column: &Column) -> Stored {
        of_type(&column.type_name, column.typmod, &column.kind)
    }
}

fn of_type(name: &str, typmod: i32, kind: &TypeKind) -> Stored {
    let inner = match kind {
        TypeKind::Domain { base } => of_type(&base.name, base.typmod, &base.kind),
        TypeKind::Array { element, .. } => {
            let element = of_type(&element.name, element.typmod, &element.kind);
            Stored { arrays: element.arrays + 1, ..element }
        }
        TypeKind::Enum { labels } => Stored { labels: labels.clone(), kind: 'e', ..plain(name) },
        // An entry of a build that did not tell what types are made of. Vectors are types of their own.
        TypeKind::Base => match name.strip_prefix('_') {
            Some(element) => Stored { arrays: 1, ..plain(element) },
            None => plain(name),
        },
        TypeKind::Composite => Stored { kind: 'c', ..plain(name) },
        TypeKind::Range => Stored { kind: 'r', ..plain(name) },
        TypeKind::Multirange => Stored { kind: 'm', ..plain(name) },
    };
    match typmod {
        -1 => inner,
        typmod => Stored { typmod, ..inner },
    }
}

fn plain(name: &str) -> Stored {
    Stored { name: name.to_owned(), typmod: -1, arrays: 0, kind: 'b', labels: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::TypeName;

    fn type_name(name: &str, typmod: i32, kind: TypeKind) -> Box<TypeName> {
        Box::new(TypeName { oid: 1, name: name.into(), typmod, kind })
    }

    fn array(element: Box<TypeName>) -> TypeKind {
        TypeKind::Array { element, delimiter: b',' }
    }

    #[test]
    fn domains_and_arrays_are_what_they_are_made_of() {
        let numeric = || type_name("numeric", 655_366, TypeKind::Base);
        let price = || TypeKind::Domain { base: numeric() };
        let held = Stored { typmod: 655_366, ..plain("numeric") };
        assert_eq!(of_type("public.price", -1, &price()), held);
        let dear = TypeKind::Domain { base: type_name("public.price", -1, price()) };
        assert_eq!(of_type("public.dear", -1, &dear), held, "a domain over a domain");
        let prices = array(type_name("public.price", -1, price()));
        assert_eq!(of_type("public._price", -1, &prices), Stored { arrays: 1, ..held.clone() });
        let list =
            TypeKind::Domain { base: type_name("_numeric", 655_366, array(type_name("numeric", -1, TypeKind::Base))) };
        assert_eq!(of_type("public.list", -1, &list), Stored { arrays: 1, ..held.clone() });
        assert_eq!(of_type("_numeric", 655_366, &TypeKind::Base), Stored { arrays: 1, ..held });
    }
}
