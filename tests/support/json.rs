//! JSON with variable formatting: keys in any order, any white space, any escapes.

use std::fmt::Write as _;

use serde_json::Value;

/// A JSON value that keeps the text of its numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`, `true`, `false` or a number, as text.
    Scalar(String),
    /// A string's content.
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Formatting options.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    /// Keys in reverse order.
    pub(crate) reversed: bool,
    /// White space at every permitted position.
    pub(crate) spaced: bool,
    /// `\u` escapes for every character of keys and strings.
    pub(crate) escaped: bool,
}

impl Style {
    /// All combinations.
    pub(crate) const ALL: [Self; 8] = {
        let mut all = [Self { reversed: false, spaced: false, escaped: false }; 8];
        let mut at = 0;
        while at < 8 {
            all[at] = Self { reversed: at & 1 != 0, spaced: at & 2 != 0, escaped: at & 4 != 0 };
            at += 1;
        }
        all
    };
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::Scalar(value.to_string()),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(members) => Self::Object(
                members.iter().map(|(key, value)| (key.clone(), value.into())).collect(),
            ),
        }
    }
}

impl Json {
    /// The JSON text.
    pub(crate) fn write(&self, style: Style) -> String {
        let mut out = String::new();
        self.write_to(style, &mut out);
        out
    }

    /// The leaves: scalars and strings.
    pub(crate) fn leaves(&mut self) -> Vec<&mut Json> {
        match self {
            Self::Scalar(_) | Self::Text(_) => vec![self],
            Self::Array(items) => items.iter_mut().flat_map(Self::leaves).collect(),
            Self::Object(members) => {
                members.iter_mut().flat_map(|(_, value)| value.leaves()).collect()
            }
        }
    }

    fn write_to(&self, style: Style, out: &mut String) {
        let space = if style.spaced { " \r\n\t" } else { "" };
        out.push_str(space);
        match self {
            Self::Scalar(text) => out.push_str(text),
            Self::Text(text) => write_text(text, style, out),
            Self::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    item.write_to(style, out);
                }
                out.push_str(space);
                out.push(']');
            }
            Self::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                if style.reversed {
                    members.reverse();
                }
                out.push('{');
                for (at, (key, value)) in members.into_iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    out.push_str(space);
                    write_text(key, style, out);
                    out.push_str(space);
                    out.push(':');
                    value.write_to(style, out);
                }
                out.push_str(space);
                out.push('}');
            }
        }
        out.push_str(space);
    }
}

fn write_text(text: &str, style: Style, out: &mut String) {
    if !style.escaped {
        out.push_str(&Value::from(text).to_string());
        return;
    }
    out.push('"');
    for unit in text.encode_utf16() {
        let _ =
            if unit % 2 == 0 { write!(out, "\\u{unit:04x}") } else { write!(out, "\\u{unit:04X}") };
    }
    out.push('"');
}
