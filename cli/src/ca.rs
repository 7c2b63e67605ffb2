//! `banyan ca …` and `banyan token …`: the cluster's authority, and how members come to their certificates.

use std::{fs, path::PathBuf, time::Duration};

use banyan_ca::{Authority, Grant, REGISTRY_NAME, TOKEN_TIME, VALID, create, member, service::Service};
use banyan_etcd::{Registry, Tls};
use banyan_proto::{Identity, NodeName, Role};

use crate::{
    args,
    exit::{Code, Failure},
    listen, output,
    stop::Stop,
    tls::{self, EtcdTlsArgs},
};

/// Where the authority listens, for who makes tokens on its machine.
const ADDRESS_FILE: &str = "address";
/// As long as a process may run.
const OWN_VALID: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// The shortest life of a certificate: it is renewed after two thirds.
const VALID_MIN: Duration = Duration::from_secs(3);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Makes the authority of a new cluster.
    Init(InitArgs),
    /// Serves those who join with a token, and those who renew, until Ctrl-C.
    Serve(ServeArgs),
    /// Gets a member's first certificate with a token, from BANYAN_JOIN_TOKEN or a file.
    Join(JoinArgs),
    /// Lets nobody renew a member's certificates; those that it has end by themselves.
    Revoke(RevokeArgs),
    /// Makes a member's certificate here, beside the authority; nobody renews it but who does this again.
    Issue(IssueArgs),
}

#[derive(clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token with which one member can join, within ten minutes.
    Create(TokenArgs),
}

/// The authority's folder.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FolderArgs {
    /// The authority's folder. Who reads its ca.key is the cluster.
    #[arg(long, env = "BANYAN_CA_DIR", value_name = "DIR", default_value = "banyan-ca")]
    dir: PathBuf,
}

/// The registry, as the authority comes to it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AuthorityRegistryArgs {
    /// The registry's endpoints: any etcd, or `banyan registry serve`.
    #[arg(
        long = "etcd",
        env = "BANYAN_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    #[command(flatten)]
    tls: EtcdTlsArgs,
}

#[derive(clap::Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The cluster whose authority it is.
    #[arg(long, env = "BANYAN_CLUSTER", value_name = "NAME", default_value = "default")]
    cluster: NodeName,
}

#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    registry: AuthorityRegistryArgs,
    /// Where to listen.
    #[arg(long, env = "BANYAN_CA_LISTEN", value_name = "HOST:PORT", default_value = "127.0.0.1:7599", value_parser = args::address)]
    listen: String,
    /// Where others reach it, when that is not where it listens.
    #[arg(long, env = "BANYAN_CA_ADVERTISE", value_name = "HOST:PORT", value_parser = args::address)]
    advertise: Option<String>,
    /// How long certificates are good; members renew them when a third of that is left.
    #[arg(long, env = "BANYAN_CA_VALID", value_name = "TIME", default_value = "24h", value_parser = args::duration)]
    valid: Duration,
}

#[derive(clap::Args)]
pub(crate) struct JoinArgs {
    /// The member's name.
    name: NodeName,
    /// The folder for its certificate and key.
    #[arg(long = "dir", env = "BANYAN_TLS_DIR", value_name = "DIR")]
    folder: PathBuf,
    /// A file with the token, `-` for standard input; by default BANYAN_JOIN_TOKEN holds it.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct RevokeArgs {
    /// The member's name.
    name: NodeName,
    /// What it is: root, node, api, registry or operator.
    #[arg(long, value_name = "ROLE", default_value = "node", value_parser = role)]
    role: Role,
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    registry: AuthorityRegistryArgs,
}

#[derive(clap::Args)]
pub(crate) struct IssueArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The member's name.
    #[arg(long, value_name = "NAME")]
    name: NodeName,
    /// What it may be: root, node, api, registry or operator.
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Role,
    /// The folder to write ca.crt, tls.crt and tls.key to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is good.
    #[arg(long, value_name = "TIME", default_value_t = Valid(VALID), value_parser = valid)]
    valid: Valid,
    /// A DNS name or an address by which browsers and etcd may know it too.
    #[arg(long = "host", value_name = "NAME", value_delimiter = ',')]
    hosts: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    folder: FolderArgs,
    #[command(flatten)]
    registry: AuthorityRegistryArgs,
    /// What the new member may be: root, node, api, registry or operator.
    #[arg(long, value_name = "ROLE", default_value = "node", value_parser = role)]
    role: Role,
    /// Its name; without one a node may choose a name that no certificate was made for.
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    /// Where the new member reaches the authority; by default where `banyan ca serve` said.
    #[arg(long, value_name = "HOST:PORT", value_parser = args::address)]
    authority: Option<String>,
    /// How long it may wait to be used.
    #[arg(long, value_name = "TIME", default_value_t = Valid(TOKEN_TIME), value_parser = valid)]
    within: Valid,
}

/// A time that is shown as it is written.
#[derive(Clone, Copy, Debug)]
struct Valid(Duration);

impl std::fmt::Display for Valid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

fn valid(text: &str) -> Result<Valid, String> {
    args::duration(text).map(Valid)
}

fn role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(Role::Authority) => Err("there is one authority, which `banyan ca init` makes".to_owned()),
        role => role.map_err(|error: banyan_proto::IdentityError| error.to_string()),
    }
}

impl AuthorityRegistryArgs {
    async fn connect(&self, authority: &Authority) -> Result<Registry, Failure> {
        let mut config = banyan_etcd::Config::new(self.endpoints.clone(), authority.cluster().clone());
        config.tls = match self.tls.read()? {
            Some(tls) => Some(tls),
            None if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) => Some(own(authority)?),
            None => None,
        };
        Ok(Registry::connect(config).await?)
    }
}

/// As whom the authority comes to a registry of the cluster's. Kept in memory only, by who could sign another at any time.
fn own(authority: &Authority) -> Result<Tls, Failure> {
    let identity =
        Identity { cluster: authority.cluster().clone(), role: Role::Authority, name: "ca".parse().expect("a valid name") };
    let (certificate, key) = authority.issue(&identity, OWN_VALID, &[])?;
    let identity = Some((certificate.into_bytes(), key.into_bytes()));
    Ok(Tls { authority: authority.pem().as_bytes().to_vec(), identity, name: Some(REGISTRY_NAME.to_owned()) })
}

pub(crate) async fn run(command: Command, stop: Stop) -> Result<(), Failure> {
    match command {
        Command::Init(args) => {
            let authority = Authority::init(&args.folder.dir, args.cluster)?;
            let dir = args.folder.dir.display();
            output::note(&format!(
                "keep {dir}/ca.key safe: who reads it is the cluster; `banyan ca serve --dir {dir}` signs with it"
            ));
            output::print(&format!(
                "the authority of the cluster {} is in {dir}\n  SHA-256  {}",
                authority.cluster(),
                authority.pin().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ))
        }
        Command::Serve(args) => serve(args, stop).await,
        Command::Join(args) => stop.unless(join(args)).await,
        Command::Revoke(args) => stop.unless(revoke(args)).await,
        Command::Issue(args) => {
            let authority = Authority::open(&args.folder.dir)?;
            let identity = Identity { cluster: authority.cluster().clone(), role: args.role, name: args.name };
            member::issue(&authority, &args.out, &identity, args.valid.0, &args.hosts)?;
            output::print(&format!("{identity} is in {}", args.out.display()))
        }
    }
}

pub(crate) async fn token(command: TokenCommand) -> Result<(), Failure> {
    let TokenCommand::Create(args) = command;
    if args.name.is_none() && args.role != Role::Node {
        return Err(Failure::told(Code::Usage, format!("a token for the role {} is for one name", args.role))
            .hint(format!("`banyan token create --role {} --name NAME`", args.role)));
    }
    let authority = Authority::open(&args.folder.dir)?;
    let address = args.authority.or_else(|| fs::read_to_string(args.folder.dir.join(ADDRESS_FILE)).ok());
    let address = address.ok_or_else(|| {
        Failure::told(Code::NotFound, "the authority has not said where it listens")
            .hint(format!("start `banyan ca serve --dir {}`, or say `--authority HOST:PORT`", args.folder.dir.display()))
    })?;
    let registry = args.registry.connect(&authority).await?;
    let grant = Grant::new(args.role, args.name.clone(), args.within.0);
    let token = create(&authority, &registry, address.trim().to_owned(), &grant).await?;
    let name = args.name.map_or("a name that is free".to_owned(), |name| name.to_string());
    output::note(&format!("good once, for {} s, for the {} {name}; shown this once only:", args.within.0.as_secs(), args.role));
    output::print(&token.reveal())
}

async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let authority = Authority::open(&args.folder.dir)?;
    let registry = args.registry.connect(&authority).await?;
    registry.revoke_name(args.role.as_str(), &args.name).await?;
    output::note(&format!(
        "nobody renews certificates of the {0} {1} from now on; `banyan token create --role {0} --name {1}` lets it join again",
        args.role, args.name
    ));
    Ok(())
}

async fn join(args: JoinArgs) -> Result<(), Failure> {
    let token = match &args.token_file {
        Some(path) => tls::token_in(path)?,
        None => tls::token_given().ok_or_else(|| {
            Failure::told(Code::Usage, "there is no token")
                .hint("put what `banyan token create` printed into BANYAN_JOIN_TOKEN, or into a file for `--token-file FILE`")
        })??,
    };
    let identity = member::join(&args.folder, &token, &args.name).await?;
    output::print(&format!("{identity} is in {}", args.folder.display()))
}

async fn serve(args: ServeArgs, stop: Stop) -> Result<(), Failure> {
    if args.valid < VALID_MIN {
        return Err(
            Failure::told(Code::Usage, "certificates would end before they are renewed").hint("`--valid 24h` is the default")
        );
    }
    let authority = Authority::open(&args.folder.dir)?;
    let listener = listen::bind("the authority", "--listen", &args.listen).await?;
    let address = listener.local_addr().map_err(anyhow::Error::new)?;
    if address.ip().is_unspecified() && args.advertise.is_none() {
        return Err(Failure::told(Code::Usage, format!("others can't dial {address}"))
            .hint(format!("say where they reach it: `--advertise HOST:{}`", address.port())));
    }
    let registry = stop.unless(args.registry.connect(&authority)).await?;
    let pin = authority.pin();
    let advertised = args.advertise.unwrap_or_else(|| address.to_string());
    let path = args.folder.dir.join(ADDRESS_FILE);
    fs::write(&path, &advertised)
        .map_err(|error| anyhow::Error::new(error).context(format!("failed to write {}", path.display())))?;
    let cluster = authority.cluster().clone();
    let service = Service::start(authority, registry, listener, args.valid).await.map_err(anyhow::Error::new)?;
    let pin: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
    output::print(&format!("the authority of the cluster {cluster} is ready\n  address  {advertised}\n  SHA-256  {pin}"))?;
    stop.asked().await;
    service.stop().await;
    Ok(())
}
