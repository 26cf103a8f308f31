//! Prepares a server for documents: types of fields, and how long data is kept.

use serde_json::{Value, json};

use super::bulk::{KIND, index_of};
use super::client::{Answer, Client, ClientOptions};
use crate::output::{Kind, OutputError};

/// The name of the policy, and the prefix of the templates' names.
const NAME: &str = "socktrail";
/// The remedy if the server forbids a request of [`setup`].
const IF_FORBIDDEN: &str =
    "allow the user or the API key to do this: manage_index_templates, manage_ilm and monitor on the cluster";
/// The priority of the templates: higher than that of the server's own templates for `logs-*-*`, which is 100.
const PRIORITY: u32 = 200;

/// What [`setup`] has installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The names of the index templates.
    pub templates: Vec<String>,
    /// Whether a lifecycle policy was installed. OpenSearch does not support them.
    pub policy: bool,
}

/// Installs an index template for each kind of document, and a lifecycle policy that starts a new index at 30 days or 50 GB and
/// deletes an index 90 days after it was rolled over. The policy applies only to data streams. Replaces templates and policies
/// with these names. `{kind}` in `index_pattern` stands for the kind of document.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn setup(options: ClientOptions, index_pattern: &str, data_stream: bool) -> Result<Installed, OutputError> {
    let mut client = Client::new(options)?;
    let server = server(&mut client)?;
    let policy = server == Server::Elasticsearch;
    if policy {
        put(&mut client, &format!("_ilm/policy/{NAME}"), &lifecycle())?;
    }
    let mut templates = Vec::new();
    // Without `{kind}` in the pattern, all kinds have the same index, so one template is enough.
    let has_kind = index_pattern.contains(KIND);
    let kinds = if has_kind { &Kind::ALL[..] } else { &Kind::ALL[..1] };
    for kind in kinds {
        let name = if has_kind { format!("{NAME}-{}", kind.name()) } else { NAME.to_owned() };
        let index = index_of(index_pattern, *kind);
        put(&mut client, &format!("_index_template/{name}"), &template(&index, data_stream, server))?;
        templates.push(name);
    }
    Ok(Installed { templates, policy })
}

fn put(client: &mut Client, path: &str, body: &Value) -> Result<(), OutputError> {
    let answer = client.ask("PUT", path, "application/json", body.to_string().as_bytes())?;
    if answer.status == 200 { Ok(()) } else { Err(client.refusal(&answer, IF_FORBIDDEN)) }
}

/// The product that a server runs. Their features differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// It has index lifecycle management and the field type `wildcard`, both in X-Pack.
    Elasticsearch,
    /// It has no index lifecycle management, and no `wildcard` before 2.15.
    OpenSearch,
}

/// Asks the server which product it runs.
fn server(client: &mut Client) -> Result<Server, OutputError> {
    let answer: Answer = client.ask("GET", "", "application/json", b"")?;
    let about: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if !about["version"]["number"].is_string() {
        return Err(client.refusal(&answer, IF_FORBIDDEN));
    }
    let is_opensearch = about["version"]["distribution"] == "opensearch";
    Ok(if is_opensearch { Server::OpenSearch } else { Server::Elasticsearch })
}

fn lifecycle() -> Value {
    json!({ "policy": { "phases": {
        "hot": { "actions": { "rollover": { "max_age": "30d", "max_primary_shard_size": "50gb" } } },
        "delete": { "min_age": "90d", "actions": { "delete": {} } }
    } } })
}

fn template(index: &str, data_stream: bool, server: Server) -> Value {
    let mut template = json!({
        "index_patterns": [index],
        "priority": PRIORITY,
        "template": { "settings": { "index": {} }, "mappings": mappings(server) },
        "_meta": { "description": "Documents of Socktrail" }
    });
    if data_stream {
        template["data_stream"] = json!({});
    }
    // Outside a data stream, the policy's rollover would fail, because it needs an alias to write to.
    if data_stream && server == Server::Elasticsearch {
        template["template"]["settings"]["index"]["lifecycle"] = json!({ "name": NAME });
    }
    template
}

/// The mappings of fields to the types of ECS. There is one difference: all text that is not listed becomes a keyword, even
/// `message` and `error.message`, which are `match_only_text` in ECS.
fn mappings(server: Server) -> Value {
    let mut mappings = json!({
        "date_detection": false,
        "dynamic_templates": [{ "text": {
            "match_mapping_type": "string", "mapping": { "type": "keyword", "ignore_above": 1024 }
        } }],
        "properties": {}
    });
    for (field_type, fields) in FIELDS {
        for field in fields.split_whitespace() {
            let path = field.split('.').fold(&mut mappings, |within, part| &mut within["properties"][part]);
            *path = json!({ "type": field_type });
        }
    }
    // A term of Lucene has at most 32,766 bytes, which is enough for 8191 characters of 4 bytes. Longer text is kept and shown, but
    // not searched.
    let long_keyword = json!({ "type": "keyword", "ignore_above": 8191 });
    let process = &mut mappings["properties"]["process"]["properties"];
    process["command_line"] = match server {
        Server::Elasticsearch => json!({ "type": "wildcard" }),
        Server::OpenSearch => long_keyword.clone(),
    };
    process["args"] = long_keyword;
    mappings
}

/// Fields by type. All other fields become keywords, booleans or numbers, by their values.
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
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::output::elasticsearch::{Credentials, TlsOptions};

    #[test]
    fn a_forbidden_request_names_the_privileges_that_setup_needs() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = ClientOptions {
            hosts: vec![format!("http://{}", listener.local_addr().unwrap())],
            credentials: Credentials::None,
            tls: TlsOptions::default(),
            compression_level: 0,
            timeout: Duration::from_secs(60),
        };
        let answering = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
            let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            connection.write_all(answer).unwrap();
        });
        let error = setup(options, "mine", true).unwrap_err().to_string();
        answering.join().unwrap();
        assert!(error.contains("answers 403") && error.contains("manage_index_templates"), "{error}");
    }

    #[test]
    fn a_template_has_its_pattern_types_and_lifecycle() {
        let template = template("logs-socktrail.flow-default", true, Server::Elasticsearch);
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
        assert_eq!(properties["process"]["properties"]["command_line"]["type"], "wildcard");
    }

    #[test]
    fn an_index_that_is_not_a_data_stream_has_no_lifecycle() {
        let template = template("mine", false, Server::Elasticsearch);
        assert_eq!(template.get("data_stream"), None);
        assert_eq!(template["template"]["settings"]["index"].get("lifecycle"), None);
    }

    #[test]
    fn a_template_for_opensearch_has_no_lifecycle_and_no_wildcards() {
        let template = template("mine", true, Server::OpenSearch);
        assert_eq!(template["template"]["settings"]["index"].get("lifecycle"), None);
        let command_line = &template["template"]["mappings"]["properties"]["process"]["properties"]["command_line"];
        assert_eq!(*command_line, json!({ "type": "keyword", "ignore_above": 8191 }));
    }
}
