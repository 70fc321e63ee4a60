//! Changes of an object as a JSON patch (RFC 6902), which the apiserver makes all or none of.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A JSON patch that grows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct JsonPatch(Vec<Value>);

impl JsonPatch {
    pub(crate) fn add(&mut self, path: &str, value: Value) {
        self.0
            .push(json!({ "op": "add", "path": path, "value": value }));
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.0.push(json!({ "op": "remove", "path": path }));
    }

    /// Sets a label (`field` is `labels`) or an annotation (`annotations`) of an object.
    pub(crate) fn set(&mut self, object: &Value, field: &str, key: &str, value: &str) {
        let path = format!("/metadata/{field}");
        let made = self.0.iter().any(|change| change["path"] == path);
        if object["metadata"][field].is_object() || made {
            self.add(&format!("{path}/{}", escaped(key)), json!(value));
        } else {
            let one: BTreeMap<&str, &str> = [(key, value)].into();
            self.add(&path, json!(one));
        }
    }

    /// Takes a label or an annotation away that is there.
    pub(crate) fn unset(&mut self, field: &str, key: &str) {
        self.remove(&format!("/metadata/{field}/{}", escaped(key)));
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_value(self) -> Value {
        Value::Array(self.0)
    }
}

/// A key as part of a path.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Makes the changes of a patch, as the apiserver does; for tests.
#[cfg(test)]
pub(crate) fn applied(object: &Value, patch: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    for change in patch.as_array().ok_or("no patch")? {
        let path = change["path"].as_str().ok_or("no path")?;
        if change["op"] == "test" {
            if object.pointer(path) != Some(&change["value"]) {
                return Err(format!("{path} is another"));
            }
            continue;
        }
        let (parent, last) = path.rsplit_once('/').ok_or("no parent")?;
        let parent = object.pointer_mut(parent).ok_or(path)?;
        let last = last.replace("~1", "/").replace("~0", "~");
        match (parent, change["op"].as_str()) {
            (Value::Array(list), Some("add")) if last == "-" => list.push(change["value"].clone()),
            (Value::Array(list), Some("remove")) => {
                list.remove(last.parse().map_err(|_| path)?);
            }
            (Value::Object(fields), Some("add")) => {
                fields.insert(last, change["value"].clone());
            }
            (Value::Object(fields), Some("remove")) => {
                fields.remove(&last).ok_or(path)?;
            }
            _ => return Err(format!("{change} cannot be made")),
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_annotations_are_made_where_there_are_none() {
        for object in [
            json!({ "metadata": {} }),
            json!({ "metadata": { "labels": { "a/b": "c" } } }),
        ] {
            let mut patch = JsonPatch::default();
            patch.set(&object, "labels", "weir.io/x", "1");
            patch.set(&object, "labels", "weir.io/y~", "2");
            let object = applied(&object, &patch.into_value()).unwrap();
            assert_eq!(object["metadata"]["labels"]["weir.io/x"], "1");
            assert_eq!(object["metadata"]["labels"]["weir.io/y~"], "2");
            let mut patch = JsonPatch::default();
            patch.unset("labels", "weir.io/y~");
            let object = applied(&object, &patch.into_value()).unwrap();
            assert!(object["metadata"]["labels"]["weir.io/y~"].is_null());
        }
    }
}
