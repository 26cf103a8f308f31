//! Talks to the servers, one after the other.

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
use crate::output::trouble::Cause;
use crate::output::{Kind, OutputError, printable};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// No answer is longer.
const LONGEST: u64 = 64 << 20;
/// What is shown in the place of a secret.
const HIDDEN: &str = "********";
/// Characters of an answer that are repeated in an error.
const EXCERPT: usize = 200;

/// Who we are to the server.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody.
    None,
    /// A user with a password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An API key, as `id:key` or as the server gives it encoded.
    ApiKey(String),
}

/// Secrets are not shown.
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

    /// A text that somebody else wrote, with our secrets hidden in it.
    fn hidden_in(&self, text: &str) -> String {
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

/// Where the servers are and how to talk to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// `https://host:9200`, at least one.
    pub hosts: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// Whom to trust.
    pub tls: TlsOptions,
    /// 0, none, to 9.
    pub compression_level: u32,
    /// How long a request may take.
    pub timeout: Duration,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The host that gave it.
    pub host: String,
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request got no response.
#[derive(Debug)]
pub struct Unanswered(pub Cause, pub OutputError);

impl From<Unanswered> for OutputError {
    fn from(Unanswered(_, error): Unanswered) -> Self {
        error
    }
}

impl Answer {
    /// Whether the server refuses the request for good, as forbidden or invalid. Other failures say to come back later.
    pub fn refuses(&self) -> bool {
        matches!(self.status, 400..500) && !matches!(self.status, 408 | 429)
    }
}

/// A client of several servers that stays with one as long as that one answers.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    options: ClientOptions,
    authorization: Option<String>,
    current: usize,
}

impl Client {
    /// Prepares; nobody is asked yet.
    ///
    /// # Errors
    /// Certificates cannot be used.
    pub fn new(options: ClientOptions) -> Result<Self, OutputError> {
        let needs_tls = options.hosts.iter().any(|host| host.starts_with("https:"));
        let tls = if needs_tls { Some(tls::config(&options.tls)?) } else { None };
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
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

    /// Asks one server after the other until one gives an answer that another server would give as well. If none does,
    /// returns an answer all the same: preferably a refusal (see [`Answer::refuses`]), else one that says to come back
    /// later.
    ///
    /// # Errors
    /// No server answered. The error names the last one that was asked.
    pub fn ask(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer, Unanswered> {
        let packing = |error| Unanswered(Cause::System, OutputError::new(format!("packing: {error}"), ""));
        let packed = self.pack(body).map_err(packing)?;
        let nobody = OutputError::new("no host is named", "name one in output.elasticsearch.hosts");
        let mut failed = Unanswered(Cause::System, nobody);
        let mut unwell: Option<Answer> = None;
        for _ in 0..self.options.hosts.len() {
            let host = &self.options.hosts[self.current % self.options.hosts.len()];
            let answer = self.ask_one(host, method, path, kind, packed.as_deref().unwrap_or(body), packed.is_some());
            match answer {
                Ok(answer) if !matches!(answer.status, 300..=399 | 500.. | 401 | 403 | 429) => return Ok(answer),
                Ok(answer) if unwell.as_ref().is_none_or(|before| !before.refuses()) => unwell = Some(answer),
                Ok(_) => {}
                Err(error) => failed = failure(host, &error),
            }
            self.current = (self.current + 1) % self.options.hosts.len();
        }
        unwell.ok_or(failed)
    }

    fn ask_one(
        &self,
        host: &str,
        method: &str,
        path: &str,
        kind: &str,
        body: &[u8],
        packed: bool,
    ) -> Result<Answer, ureq::Error> {
        let request = http::Request::builder().method(method).uri(format!("{}/{path}", host.trim_end_matches('/')));
        let mut request = request.header("content-type", kind).header("accept", "application/json");
        if packed {
            request = request.header("content-encoding", "gzip");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let request = request.body(body)?.with_agent(&self.agent);
        let mut response = request.run()?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LONGEST).read_to_vec()?;
        Ok(Answer { host: host.to_owned(), status, body })
    }

    /// What a server that answers, but not what was hoped for, has said; without our secrets, should it repeat them.
    pub fn refusal(&self, answer: &Answer) -> OutputError {
        let remedy = match answer.status {
            401 => "check output.elasticsearch.api_key, or username and password",
            403 => "allow the user or the API key to do this: create_doc and auto_configure on the index",
            404 => "create the index, or allow that it is created; `socktrail setup` prepares it",
            _ => "",
        };
        let said = self.options.credentials.hidden_in(&String::from_utf8_lossy(&answer.body));
        OutputError::new(format!("{} answers {}: {}", answer.host, answer.status, printable(&said, EXCERPT)), remedy)
    }

    fn pack(&self, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
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
    fn secrets_are_hidden_in_what_others_say() {
        let basic = Credentials::Basic { username: "me".to_owned(), password: "s3cr3t".to_owned() };
        let [pair, encoded] = ["id:s3cr3t", "s3cr3t=="].map(|key| Credentials::ApiKey(key.to_owned()));
        for (credentials, said, hidden) in [
            (&basic, "Basic bWU6czNjcjN0, of me and s3cr3t", "Basic ********, of me and ********"),
            (&pair, "ApiKey aWQ6czNjcjN0, of id and s3cr3t", "ApiKey ********, of id and ********"),
            (&encoded, "ApiKey s3cr3t==", "ApiKey ********"),
            (&Credentials::None, "as it is", "as it is"),
        ] {
            assert_eq!(credentials.hidden_in(said), hidden);
        }
    }
}
