//! `[sinks.NAME.values]` of a connector: columns that only a sink's table has, and what is computed for them of each row. A short
//! list of functions that say the same for the same row for ever; whatever else is to be computed, the sink's own generated
//! columns do.

use super::describe::text;
use super::findings::At;
use super::process::check_identifier;
use super::reader::{Section, Text};
use super::shape;

/// A column and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub column: String,
    pub expression: Expression,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// The same in every row, as the column's type reads it.
    Constant(String),
    /// Of the row's own columns, as records name them; a text.
    Of { function: Function, columns: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Function {
    Lower,
    Upper,
    /// Without blanks at both ends.
    Trim,
    /// Of those that are not NULL.
    Concat {
        separator: String,
    },
    /// The first that is not NULL.
    Coalesce,
}

impl Expression {
    /// The columns that it is made of.
    pub fn inputs(&self) -> &[String] {
        match self {
            Expression::Constant(_) => &[],
            Expression::Of { columns, .. } => columns,
        }
    }
}

impl std::fmt::Display for Expression {
    /// As a connector says it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (function, columns) = match self {
            Expression::Constant(constant) => return write!(f, "{{ constant = {} }}", text(constant)),
            Expression::Of { function, columns } => (function, columns),
        };
        let list = || toml::Value::from(columns.clone());
        match function {
            Function::Lower => write!(f, "{{ lower = {} }}", text(&columns[0])),
            Function::Upper => write!(f, "{{ upper = {} }}", text(&columns[0])),
            Function::Trim => write!(f, "{{ trim = {} }}", text(&columns[0])),
            Function::Coalesce => write!(f, "{{ coalesce = {} }}", list()),
            Function::Concat { separator } => {
                write!(f, "{{ concat = {}, separator = {} }}", list(), text(separator))
            }
        }
    }
}

/// `taken` are the columns that the sink takes of the source's.
pub(super) fn values(sink: &mut Section<'_>, taken: Option<&[Text]>) -> Vec<Value> {
    let values = sink.each("values", |column, section| {
        check_identifier(section, "column", &column);
        let named = taken.into_iter().flatten().any(|taken| taken.value == column.value);
        if named {
            let message = format!("column {:?} is computed, and columns takes it from the source", column.value);
            section.report().add(&column.at, message, format!("delete {:?} from columns, or the value", column.value));
        }
        let expression = expression(&column, section)?;
        let left_out = |name: &&String| taken.is_some_and(|taken| taken.iter().all(|column| column.value != **name));
        if let Some(name) = expression.inputs().iter().find(left_out) {
            let message = format!("column {:?} is made of {name}, which the sink does not take", column.value);
            section.report().add(&column.at, message, format!("write {name:?} into columns"));
        }
        Some(Value { column: column.value, expression })
    });
    values.into_iter().flatten().collect()
}

/// `None` where a finding says why.
fn expression(column: &Text, section: &mut Section<'_>) -> Option<Expression> {
    let mut said: Vec<(At, Expression)> = Vec::new();
    if let Some(constant) = section.text("constant") {
        said.push((constant.at, Expression::Constant(constant.value)));
    }
    for (key, function) in [("lower", Function::Lower), ("upper", Function::Upper), ("trim", Function::Trim)] {
        if let Some(of) = section.text(key) {
            check_identifier(section, "column", &of);
            said.push((of.at, Expression::Of { function, columns: vec![of.value] }));
        }
    }
    let separator = section.text("separator");
    if let (None, Some(separator)) = (section.place("concat"), &separator) {
        section.report().add(&separator.at, "separator has no effect without concat", "delete separator");
    }
    let separator = separator.map(|separator| separator.value).unwrap_or_default();
    for (key, function) in [("concat", Function::Concat { separator }), ("coalesce", Function::Coalesce)] {
        let Some(columns) = shape::names(section, key, "[\"first_name\", \"last_name\"]") else { continue };
        let at = section.place(key).unwrap_or_else(|| column.at.clone());
        let columns: Vec<String> = columns.into_iter().map(|column| column.value).collect();
        if !columns.is_empty() {
            said.push((at, Expression::Of { function, columns }));
        }
    }
    let report = section.report();
    if let Some((at, _)) = said.get(1) {
        report.add(at, format!("the value of column {:?} is given twice", column.value), "delete one of them");
    }
    if said.is_empty() {
        let message = format!("the value of column {:?} says nothing", column.value);
        let hint = "write { constant = \"…\" }, or lower, upper, trim, concat or coalesce with columns";
        report.add(&column.at, message, hint);
    }
    said.into_iter().next().map(|(_, expression)| expression)
}
