//! Certificates as commands take them: a member's folder, etcd's files, and what may listen without.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use banyan_ca::{
    REGISTRY_NAME, Token,
    member::{self, JoinError},
};
use banyan_etcd::{Registry, Tls};
use banyan_proto::{AUTHORITY_FILE, CERTIFICATE_FILE, Credentials, CredentialsError, KEY_FILE, NodeName, Role, Transport};

use crate::exit::{Code, Failure};

/// A token by the environment, as it is a secret.
const TOKEN_VARIABLE: &str = "BANYAN_JOIN_TOKEN";
/// How often etcd's files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A token is some hundred bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Who we are to other members, and to etcd.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TlsArgs {
    /// A folder with ca.crt, tls.crt and tls.key, such as `banyan ca join` makes: members talk mutual TLS.
    #[arg(long, env = "BANYAN_TLS_DIR", value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    #[command(flatten)]
    etcd: EtcdTlsArgs,
}

/// TLS towards etcd.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct EtcdTlsArgs {
    /// Who signed the certificates of https:// registries (PEM); by default the folder's authority.
    #[arg(long, env = "BANYAN_ETCD_CA", value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// As whom to come to the registry (PEM); by default as the folder says.
    #[arg(long, env = "BANYAN_ETCD_CERT", value_name = "FILE", requires_all = ["etcd_ca", "etcd_key"])]
    etcd_cert: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, env = "BANYAN_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
}

/// What a command that listens is told beside.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenArgs {
    /// Listens beyond this machine without certificates, on a network where everybody is trusted.
    #[arg(long, env = "BANYAN_INSECURE")]
    pub(crate) insecure: bool,
    /// Joins with the token in this file where the folder holds no certificate yet; `BANYAN_JOIN_TOKEN` may hold the token itself.
    #[arg(long, env = "BANYAN_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

/// Who wants to listen, and where.
pub(crate) struct Listening<'a> {
    /// In words.
    pub(crate) what: &'a str,
    pub(crate) address: SocketAddr,
    pub(crate) role: Role,
    /// None where any will do.
    pub(crate) name: Option<&'a NodeName>,
    pub(crate) cluster: Option<&'a NodeName>,
}

impl TlsArgs {
    /// How other members are dialled.
    pub(crate) fn transport(&self) -> Result<Transport, Failure> {
        Ok(match &self.tls_dir {
            Some(folder) => Transport::mutual(Credentials::read(folder)?),
            None => Transport::default(),
        })
    }

    /// The same, for who has one role only.
    pub(crate) fn transport_of(&self, role: Role) -> Result<Transport, Failure> {
        let transport = self.transport()?;
        match transport.identity() {
            Some(identity) if identity.role != role => {
                let told = format!("the certificate is {identity}'s, and this takes the role {role}");
                Err(Failure::told(Code::Usage, told).hint("name another folder with `--tls-dir`"))
            }
            _ => Ok(transport),
        }
    }

    /// How the registry is dialled.
    pub(crate) fn of_registry(&self, endpoints: &[String]) -> Result<Option<Tls>, Failure> {
        if let Some(tls) = self.etcd.read()? {
            return Ok(Some(tls));
        }
        let https = endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        match &self.tls_dir {
            Some(folder) if https => {
                let [authority, certificate, key] = [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| folder.join(name));
                let identity = Some((read(&certificate)?, read(&key)?));
                Ok(Some(Tls { authority: read(&authority)?, identity, name: Some(REGISTRY_NAME.to_owned()) }))
            }
            None if https => Err(Failure::told(Code::Usage, "nobody is known who could have signed the registry's certificate")
                .hint("name that authority's certificate with `--etcd-ca FILE`, or this member's folder with `--tls-dir DIR`")),
            _ => Ok(None),
        }
    }

    /// How a member listens: with its certificate, or without one where only this machine can reach it.
    pub(crate) async fn listening(&self, args: &ListenArgs, listening: &Listening<'_>) -> Result<Transport, Failure> {
        if let (Some(folder), Some(name)) = (&self.tls_dir, listening.name)
            && !member::is_joined(folder)
            && let Some(token) = args.token()?
        {
            member::join(folder, &token, name).await?;
        }
        let transport = self.transport()?;
        let Some(identity) = transport.identity() else {
            listening.guard(args.insecure)?;
            return Ok(transport);
        };
        let fits = identity.role == listening.role
            && listening.name.is_none_or(|name| *name == identity.name)
            && listening.cluster.is_none_or(|cluster| *cluster == identity.cluster);
        if !fits {
            let wanted = match (listening.cluster, listening.name) {
                (Some(cluster), Some(name)) => format!("banyan://{cluster}/{}/{name}", listening.role),
                _ => format!("of the role {}", listening.role),
            };
            return Err(Failure::told(Code::Usage, format!("the certificate is {identity}'s, and this would be {wanted}"))
                .hint("name another folder with `--tls-dir`, or another name, parent or cluster"));
        }
        Ok(transport)
    }

    /// Renews the certificates while the process runs. Ends with the runtime.
    pub(crate) fn keep(&self, transport: &Transport, registry: Option<Registry>) {
        if let Some(folder) = &self.tls_dir {
            tokio::spawn(member::keep(folder.clone(), transport.clone()));
        }
        let Some(registry) = registry else { return };
        let endpoints = registry.endpoints().to_vec();
        let Ok(Some(mut shown)) = self.of_registry(&endpoints) else { return };
        let args = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                // Somebody may be in the middle of writing.
                let Ok(Some(now)) = args.of_registry(&endpoints) else { continue };
                if now != shown && registry.renew(now.clone()).await.is_ok() {
                    shown = now;
                }
            }
        });
    }
}

impl EtcdTlsArgs {
    /// What was given; none when nothing was.
    pub(crate) fn read(&self) -> Result<Option<Tls>, Failure> {
        let Some(authority) = &self.etcd_ca else { return Ok(None) };
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        Ok(Some(Tls { authority: read(authority)?, identity, name: None }))
    }
}

impl ListenArgs {
    fn token(&self) -> Result<Option<Token>, Failure> {
        match &self.join_token_file {
            Some(path) => Ok(Some(token_in(path)?)),
            None => match std::env::var(TOKEN_VARIABLE) {
                Ok(text) => Ok(Some(text.parse().map_err(|error| Failure::new(Code::Usage, anyhow::Error::new(error)))?)),
                Err(_) => Ok(None),
            },
        }
    }
}

impl Listening<'_> {
    /// Who listens beyond this machine needs a certificate.
    pub(crate) fn guard(&self, insecure: bool) -> Result<(), Failure> {
        if insecure || self.address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let told =
            format!("{} has no certificate, so whoever reaches {} could be anybody in the cluster", self.what, self.address);
        let named = self.name.map_or(String::new(), |name| format!(" --name {name}"));
        Err(Failure::told(Code::Usage, told).hint(format!(
            "make a token with `banyan token create --role {}{named}` where the authority is (`banyan ca init` makes one), and start \
             this with `--tls-dir DIR` and the token in {TOKEN_VARIABLE}; listen on 127.0.0.1; or say `--insecure` where everybody on \
             the network is trusted",
            self.role
        )))
    }
}

/// The token in a file, or on standard input for `-`.
pub(crate) fn token_in(path: &Path) -> Result<Token, Failure> {
    use io::Read as _;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| anyhow::Error::new(error).context(format!("failed to read the token in {}", path.display())))?;
    text.parse().map_err(|error| Failure::new(Code::Usage, anyhow::Error::new(error)))
}

/// The token in the environment.
pub(crate) fn token_given() -> Option<Result<Token, Failure>> {
    let text = std::env::var(TOKEN_VARIABLE).ok()?;
    Some(text.parse().map_err(|error| Failure::new(Code::Usage, anyhow::Error::new(error))))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(fs::read(path).map_err(|error| anyhow::Error::new(error).context(format!("failed to read {}", path.display())))?)
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Failure {
        Failure::new(Code::Error, error).hint(
            "a folder gets its certificate by `banyan ca join NAME --dir DIR` with a token of `banyan token create`; one that has \
             ended is removed and joined again",
        )
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Failure {
        let code = match &error {
            JoinError::Exists(_) => Code::Conflict,
            JoinError::Dial { .. } => Code::Unavailable,
            JoinError::Silent(_) => Code::TimedOut,
            JoinError::Refused { source, .. } if source.code() == tonic::Code::AlreadyExists => Code::Conflict,
            _ => Code::Error,
        };
        Failure::new(code, error)
    }
}

impl From<banyan_ca::AuthorityError> for Failure {
    fn from(error: banyan_ca::AuthorityError) -> Failure {
        let code = match &error {
            banyan_ca::AuthorityError::Exists(_) => Code::Conflict,
            banyan_ca::AuthorityError::Read { .. } => Code::NotFound,
            _ => Code::Error,
        };
        Failure::new(code, error)
    }
}
