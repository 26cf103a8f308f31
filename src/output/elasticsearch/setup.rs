//! What the server should know before the first document: types of fields, and how long data is kept.

use serde_json::{Value, json};

use super::bulk::{KIND, index_of};
use super::client::{Answer, Client, ClientOptions};
use crate::output::{Kind, OutputError};

/// The name of the policy, and the first part of the templates'.
const NAME: &str = "socktrail";
/// Above those for `logs-*-*` that a server brings along, which have 100.
const PRIORITY: u32 = 200;

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Names of index templates.
    pub templates: Vec<String>,
    /// Whether there is a lifecycle policy; OpenSearch has none of this kind.
    pub policy: bool,
}

/// Installs an index template for each kind of documents, and a lifecycle policy that begins a new index at 30 days or
/// 50 GB and deletes what is older than 90 days. What had these names is replaced.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn setup(options: ClientOptions, index: &str, data_stream: bool) -> Result<Installed, OutputError> {
    let mut client = Client::new(options)?;
    let policy = has_policies(&mut client)?;
    if policy {
        put(&mut client, &format!("_ilm/policy/{NAME}"), &lifecycle())?;
    }
    let mut templates = Vec::new();
    let kinds = if index.contains(KIND) { &Kind::ALL[..] } else { &Kind::ALL[..1] };
    for kind in kinds {
        let name = if index.contains(KIND) { format!("{NAME}-{}", kind.name()) } else { NAME.to_owned() };
        let index = index_of(index, *kind);
        put(&mut client, &format!("_index_template/{name}"), &template(&index, data_stream, policy))?;
        templates.push(name);
    }
    Ok(Installed { templates, policy })
}

fn put(client: &mut Client, path: &str, body: &Value) -> Result<(), OutputError> {
    let answer = client.ask("PUT", path, "application/json", body.to_string().as_bytes())?;
    if answer.status == 200 { Ok(()) } else { Err(client.refusal(&answer)) }
}

/// Whether the server manages the life of indices as Elasticsearch does.
fn has_policies(client: &mut Client) -> Result<bool, OutputError> {
    let answer: Answer = client.ask("GET", "", "application/json", b"")?;
    let about: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if !about["version"]["number"].is_string() {
        return Err(client.refusal(&answer));
    }
    Ok(about["version"]["distribution"] != "opensearch")
}

fn lifecycle() -> Value {
    json!({ "policy": { "phases": {
        "hot": { "actions": { "rollover": { "max_age": "30d", "max_primary_shard_size": "50gb" } } },
        "delete": { "min_age": "90d", "actions": { "delete": {} } }
    } } })
}

fn template(index: &str, data_stream: bool, policy: bool) -> Value {
    let mut template = json!({
        "index_patterns": [index],
        "priority": PRIORITY,
        "template": { "settings": { "index": {} }, "mappings": mappings() },
        "_meta": { "description": "Documents of Socktrail" }
    });
    if data_stream {
        template["data_stream"] = json!({});
    }
    if policy {
        template["template"]["settings"]["index"]["lifecycle"] = json!({ "name": NAME });
    }
    template
}

/// Fields with the types that ECS gives them. Text that is not named becomes a keyword.
fn mappings() -> Value {
    let mut mappings = json!({
        "date_detection": false,
        "dynamic_templates": [{ "text": {
            "match_mapping_type": "string", "mapping": { "type": "keyword", "ignore_above": 1024 }
        } }],
        "properties": {}
    });
    for (kind, fields) in FIELDS {
        for field in fields.split_whitespace() {
            let path = field.split('.').fold(&mut mappings, |within, part| &mut within["properties"][part]);
            *path = json!({ "type": kind });
        }
    }
    for field in ["args", "command_line"] {
        // Longer text is kept and shown, but not searched.
        mappings["properties"]["process"]["properties"][field] = json!({ "type": "keyword", "ignore_above": 8191 });
    }
    mappings
}

/// Fields by type; all others are keywords, booleans or numbers by what they hold.
const FIELDS: [(&str, &str); 4] = [
    ("date", "@timestamp event.start event.end process.start process.created"),
    ("ip", "source.ip destination.ip client.ip server.ip related.ip host.ip"),
    ("boolean", "flow.final flow.complete host.containerized"),
    (
        "long",
        "event.duration source.port source.packets source.bytes destination.port destination.packets destination.bytes
         client.port client.packets client.bytes server.port server.packets server.bytes network.packets network.bytes
         socktrail.loss.count socktrail.loss.cpu event.sequence
         system.audit.socket.last_user.pid
         process.pid process.parent.pid process.args_count system.audit.socket.uid system.audit.socket.gid
         system.audit.socket.euid system.audit.socket.egid",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_what_the_server_asks_for() {
        let template = template("logs-socktrail.flow-default", true, true);
        assert_eq!(template["index_patterns"], json!(["logs-socktrail.flow-default"]));
        assert_eq!(template["data_stream"], json!({}));
        let properties = &template["template"]["mappings"]["properties"];
        assert_eq!(properties["source"]["properties"]["ip"]["type"], "ip");
        assert_eq!(
            properties["system"]["properties"]["audit"]["properties"]["socket"]["properties"]["uid"]["type"],
            "long"
        );
        assert_eq!(properties["@timestamp"]["type"], "date");
        assert_eq!(template["template"]["settings"]["index"]["lifecycle"]["name"], "socktrail");
        let plain = super::template("mine", false, false);
        assert!(
            plain.get("data_stream").is_none() && plain["template"]["settings"]["index"].get("lifecycle").is_none()
        );
    }
}
