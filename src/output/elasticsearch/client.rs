//! The HTTP client, which tries several servers.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};
use ureq::{Agent, RequestExt as _, http};

use super::tls::{self, TlsConnector, TlsOptions};
use crate::model::escape::printable;
use crate::output::trouble::Cause;
use crate::output::{Kind, OutputError};

/// The timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of an answer in bytes.
const MAX_ANSWER_LEN: u64 = 64 << 20;
/// The text that is shown instead of a secret.
const HIDDEN: &str = "********";
/// The maximum number of characters of an answer that an error repeats.
const MAX_EXCERPT_LEN: usize = 200;

/// How to authenticate to the server.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Without authentication.
    None,
    /// HTTP basic authentication.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// An API key: `id:key`, or its Base64 encoding.
    ApiKey(String),
}

/// Does not show secrets.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic",
            Self::ApiKey(_) => "ApiKey",
        })
    }
}

impl Credentials {
    fn header(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Basic { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            Self::ApiKey(key) if key.contains(':') => Some(format!("ApiKey {}", STANDARD.encode(key))),
            Self::ApiKey(key) => Some(format!("ApiKey {key}")),
        }
    }

    /// Hides these secrets in a text from the server.
    fn hide_in(&self, text: &str) -> String {
        let header = self.header();
        let token = header.as_deref().and_then(|header| header.split_once(' ')).map(|(_, token)| token);
        let secret = match self {
            Self::None => None,
            Self::Basic { password, .. } => Some(&**password),
            Self::ApiKey(key) => key.rsplit(':').next(),
        };
        let secrets = [token, secret].into_iter().flatten().filter(|secret| !secret.is_empty());
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }
}

/// The options of a `Client`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// URLs of the servers, such as `https://host:9200`; at least one.
    pub hosts: Vec<String>,
    /// How to authenticate.
    pub credentials: Credentials,
    /// Certificates for `https`.
    pub tls: TlsOptions,
    /// The gzip level of requests, up to 9; 0 does not compress them.
    pub compression_level: u32,
    /// The timeout of a request.
    pub timeout: Duration,
}

/// The answer of a server.
#[derive(Debug)]
pub struct Answer {
    /// The host that answered.
    pub host: String,
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request got no answer.
#[derive(Debug)]
pub struct Unanswered(pub Cause, pub OutputError);

impl From<Unanswered> for OutputError {
    fn from(Unanswered(_, error): Unanswered) -> Self {
        error
    }
}

impl Answer {
    /// Whether the server refuses the request for good, because it is forbidden or invalid. After other failures, a retry may
    /// succeed.
    pub fn refuses(&self) -> bool {
        matches!(self.status, 400..500) && !matches!(self.status, 408 | 429)
    }
}

/// A client with a list of servers. It keeps using a server as long as this server answers.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    options: ClientOptions,
    authorization: Option<String>,
    current: usize,
}

impl Client {
    /// Prepares the client. It sends no request yet.
    ///
    /// # Errors
    /// Certificates cannot be used.
    pub fn new(options: ClientOptions) -> Result<Self, OutputError> {
        let needs_tls = options.hosts.iter().any(|host| host.starts_with("https:"));
        let tls = if needs_tls { Some(tls::config(&options.tls)?) } else { None };
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            // Each index has a connection of its own.
            .max_idle_connections_per_host(Kind::ALL.len() + 1)
            .user_agent(concat!("socktrail/", env!("CARGO_PKG_VERSION")))
            .build();
        let connector = TcpConnector::default().chain(TlsConnector(tls));
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        let authorization = options.credentials.header();
        Ok(Self { agent, options, authorization, current: 0 })
    }

    /// Sends a request to one server after the other, until one gives an answer that does not depend on the server. If none does,
    /// returns one of the answers: preferably a refusal ([`Answer::refuses`]), else one after which a retry may succeed.
    ///
    /// # Errors
    /// No server answered. The error names the last one that was asked.
    pub fn ask(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, Unanswered> {
        let compressing =
            |error| Unanswered(Cause::System, OutputError::new(format!("compressing a request: {error}"), ""));
        let compressed = self.compress(body).map_err(compressing)?;
        let no_host = OutputError::new("no host is configured", "set output.elasticsearch.hosts");
        let mut failed = Unanswered(Cause::System, no_host);
        let mut fallback: Option<Answer> = None;
        for _ in 0..self.options.hosts.len() {
            let host = &self.options.hosts[self.current % self.options.hosts.len()];
            let answer = self.ask_one(
                host,
                method,
                path,
                content_type,
                compressed.as_deref().unwrap_or(body),
                compressed.is_some(),
            );
            match answer {
                Ok(answer) if !matches!(answer.status, 300..=399 | 500.. | 401 | 403 | 429) => return Ok(answer),
                Ok(answer) if fallback.as_ref().is_none_or(|before| !before.refuses()) => fallback = Some(answer),
                Ok(_) => {}
                Err(error) => failed = failure(host, &error),
            }
            self.current = (self.current + 1) % self.options.hosts.len();
        }
        fallback.ok_or(failed)
    }

    fn ask_one(
        &self,
        host: &str,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
        is_gzip: bool,
    ) -> Result<Answer, ureq::Error> {
        let request = http::Request::builder().method(method).uri(format!("{}/{path}", host.trim_end_matches('/')));
        let mut request = request.header("content-type", content_type).header("accept", "application/json");
        if is_gzip {
            request = request.header("content-encoding", "gzip");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(body)?.with_agent(&self.agent);
        let mut response = request.run()?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER_LEN).read_to_vec()?;
        Ok(Answer { host: host.to_owned(), status, body })
    }

    /// The error for an answer that is not a success, with the text of the answer. Secrets in the text are hidden.
    /// `if_forbidden` is the remedy for 403: it names the privileges that the request needs.
    pub fn refusal(&self, answer: &Answer, if_forbidden: &'static str) -> OutputError {
        let remedy = match answer.status {
            401 => "check output.elasticsearch.api_key, or username and password",
            403 => if_forbidden,
            404 => "create the index, or allow that it is created; `socktrail setup` prepares it",
            _ => "",
        };
        let said = self.options.credentials.hide_in(&String::from_utf8_lossy(&answer.body));
        OutputError::new(
            format!("{} answers {}: {}", answer.host, answer.status, printable(&said, MAX_EXCERPT_LEN)),
            remedy,
        )
    }

    /// The body as gzip; `None` if it is not to be compressed.
    fn compress(&self, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if self.options.compression_level == 0 || body.is_empty() {
            return Ok(None);
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(self.options.compression_level));
        encoder.write_all(body)?;
        encoder.finish().map(Some)
    }
}

fn failure(host: &str, error: &ureq::Error) -> Unanswered {
    let Some(of_tls) = tls::cause(error) else {
        return Unanswered(Cause::Unavailable, OutputError::new(format!("{host}: {error}"), ""));
    };
    let cause = if tls::is_certificate_error(of_tls) { Cause::Untrusted } else { Cause::Unavailable };
    Unanswered(cause, OutputError::new(format!("{host}: TLS: {}", tls::text(of_tls)), tls::remedy(of_tls)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_in_answers() {
        let basic = Credentials::Basic { username: "me".to_owned(), password: "s3cr3t".to_owned() };
        let [pair, encoded] = ["id:s3cr3t", "s3cr3t=="].map(|key| Credentials::ApiKey(key.to_owned()));
        for (credentials, said, hidden) in [
            (&basic, "Basic bWU6czNjcjN0, of me and s3cr3t", "Basic ********, of me and ********"),
            (&pair, "ApiKey aWQ6czNjcjN0, of id and s3cr3t", "ApiKey ********, of id and ********"),
            (&encoded, "ApiKey s3cr3t==", "ApiKey ********"),
            (&Credentials::None, "as it is", "as it is"),
        ] {
            assert_eq!(credentials.hide_in(said), hidden);
        }
    }
}
