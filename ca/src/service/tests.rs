use std::path::Path;

use banyan_etcd::{Config, embedded};
use banyan_proto::{AUTHORITY_FILE, CERTIFICATE_FILE, Credentials, Expected, KEY_FILE};

use super::*;
use crate::{
    TOKEN_TIME, Token, VALID, create,
    member::{self, JoinError},
};

/// An authority that serves, and the registry that it keeps tokens in.
struct Rig {
    folder: tempfile::TempDir,
    authority: Authority,
    registry: Registry,
    service: Service,
    _server: embedded::Server,
}

impl Rig {
    async fn start() -> Rig {
        let loopback = || TcpListener::bind("127.0.0.1:0");
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let authority = Authority::init(&dir, "prod".parse().unwrap()).unwrap();
        let server = embedded::Server::start(loopback().await.unwrap(), None).await.unwrap();
        let config = Config::new(vec![format!("http://{}", server.address())], "prod".parse().unwrap());
        let registry = Registry::connect(config).await.unwrap();
        let serving = Authority::open(&dir).unwrap();
        let service = Service::start(serving, registry.clone(), loopback().await.unwrap(), VALID).await.unwrap();
        Rig { folder, authority, registry, service, _server: server }
    }

    async fn token(&self, grant: &Grant) -> Token {
        create(&self.authority, &self.registry, self.service.address().to_string(), grant).await.unwrap()
    }

    async fn join(&self, folder: &str, token: &Token, name: &str) -> Result<Identity, JoinError> {
        member::join(&self.folder.path().join(folder), token, &name.parse().unwrap()).await
    }
}

fn grant(role: Role, name: Option<&str>) -> Grant {
    Grant::new(role, name.map(|name| name.parse().unwrap()), TOKEN_TIME)
}

fn refused(joined: Result<Identity, JoinError>) -> tonic::Code {
    match joined {
        Err(JoinError::Refused { source, .. }) => source.code(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_is_good_once_and_for_what_it_was_made() {
    let rig = Rig::start().await;
    let token = rig.token(&grant(Role::Root, Some("root"))).await;
    assert_eq!(refused(rig.join("a", &token, "rootling").await), tonic::Code::PermissionDenied);
    let identity = rig.join("a", &token, "root").await.unwrap();
    assert_eq!(identity.to_string(), "banyan://prod/root/root");
    // Replayed, by whoever has seen it.
    assert_eq!(refused(rig.join("b", &token, "root").await), tonic::Code::PermissionDenied);
    assert!(!member::is_joined(&rig.folder.path().join("b")));
    // The folder that has one keeps it.
    assert!(matches!(rig.join("a", &token, "root").await, Err(JoinError::Exists(_))));
}

#[tokio::test]
async fn of_two_who_come_with_one_token_exactly_one_joins() {
    let rig = Rig::start().await;
    let token = rig.token(&grant(Role::Node, None)).await;
    let (one, other) = tokio::join!(rig.join("one", &token, "one"), rig.join("other", &token, "other"));
    assert_eq!([&one, &other].iter().filter(|joined| joined.is_ok()).count(), 1, "{one:?} {other:?}");
}

#[tokio::test]
async fn a_token_whose_time_is_over_and_one_that_somebody_else_wrote_are_none() {
    let rig = Rig::start().await;
    let late = Grant::new(Role::Node, None, Duration::ZERO);
    let token = rig.token(&late).await;
    assert_eq!(refused(rig.join("late", &token, "late").await), tonic::Code::PermissionDenied);
    // Who can write to the registry makes himself a token.
    let theirs = Authority::init(&rig.folder.path().join("theirs"), "prod".parse().unwrap()).unwrap();
    let root = grant(Role::Root, Some("root"));
    let forged = create(&theirs, &rig.registry, rig.service.address().to_string(), &root).await.unwrap();
    let forged = Token { pin: rig.authority.pin(), ..forged };
    assert_eq!(refused(rig.join("forged", &forged, "root").await), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn a_token_without_a_name_takes_nobodys_name() {
    let rig = Rig::start().await;
    rig.join("a", &rig.token(&grant(Role::Node, Some("a"))).await, "a").await.unwrap();
    let token = rig.token(&grant(Role::Node, None)).await;
    assert_eq!(refused(rig.join("again", &token, "a").await), tonic::Code::AlreadyExists);
    // It was not used up by that.
    rig.join("b", &token, "b").await.unwrap();
    // Where the operator says so, a name is given again.
    rig.join("again", &rig.token(&grant(Role::Node, Some("a"))).await, "a").await.unwrap();
}

#[tokio::test]
async fn whoever_joins_knows_the_authority_by_its_hash() {
    let rig = Rig::start().await;
    let token = rig.token(&grant(Role::Node, None)).await;
    let elsewhere = Token { pin: [0; 32], ..token.clone() };
    assert!(matches!(rig.join("a", &elsewhere, "a").await, Err(JoinError::Dial { .. })));
    // The secret was not sent, so it is still good.
    rig.join("a", &token, "a").await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_for_who_shows_it_under_the_same_name() {
    let rig = Rig::start().await;
    rig.join("a", &rig.token(&grant(Role::Node, None)).await, "a").await.unwrap();
    let folder = rig.folder.path().join("a");
    let before = std::fs::read(folder.join(CERTIFICATE_FILE)).unwrap();
    let transport = Transport::mutual(Credentials::read(&folder).unwrap());
    assert!(member::renew(&folder, &transport).await.unwrap());
    assert_ne!(std::fs::read(folder.join(CERTIFICATE_FILE)).unwrap(), before);
    assert_eq!(Credentials::read(&folder).unwrap().identity().to_string(), "banyan://prod/node/a");
    assert_eq!(mode(&folder.join(KEY_FILE)), 0o600);
    assert_eq!(mode(&folder.join(AUTHORITY_FILE)), 0o644);
    // Once it was revoked it ends, until somebody has joined under the name again.
    rig.registry.revoke_name("node", &"a".parse().unwrap()).await.unwrap();
    assert!(matches!(member::renew(&folder, &transport).await, Err(JoinError::Refused { .. })));
    rig.join("again", &rig.token(&grant(Role::Node, Some("a"))).await, "a").await.unwrap();
    assert!(member::renew(&folder, &transport).await.unwrap());
    // Without one there is nothing to renew.
    let endpoint = dial::endpoint(&rig.service.address().to_string()).unwrap();
    let channel = Transport::pinned(&endpoint, rig.authority.pin()).await.unwrap();
    let asked = v1::RenewRequest { request: Default::default() };
    let refused = v1::authority_client::AuthorityClient::new(channel).renew(asked).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn what_ends_or_comes_from_elsewhere_does_not_get_past_the_handshake() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, cluster: &str| Authority::init(&folder.path().join(name), cluster.parse().unwrap()).unwrap();
    let (ours, theirs) = (open("ours", "prod"), open("theirs", "prod"));
    let server = Transport::mutual(ours.credentials(Role::Node, "a", VALID).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = server.incoming(listener, Clients::OfCluster);
    tokio::spawn(dial::server().add_service(health).serve_with_incoming(incoming));

    let call = async |client: &Transport, expected: Expected| {
        let channel = client.lazily(&dial::endpoint(&address).unwrap(), expected);
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        health.check(tonic_health::pb::HealthCheckRequest { service: String::new() }).await
    };
    let a = || Expected::member(&"a".parse().unwrap());
    let good = Transport::mutual(ours.credentials(Role::Api, "api", VALID).unwrap());
    call(&good, a()).await.unwrap();
    // Somebody else answers than who was expected.
    assert!(call(&good, Expected::member(&"b".parse().unwrap())).await.is_err());
    assert!(call(&good, Expected::root(&"a".parse().unwrap())).await.is_err());
    // Another authority's, and no certificate at all.
    let strange = Transport::mutual(theirs.credentials(Role::Api, "api", VALID).unwrap());
    assert!(call(&strange, a()).await.is_err());
    assert!(call(&Transport::default(), a()).await.is_err());
    // Another cluster's, of the same authority.
    let foreign: Identity = "banyan://test/api/api".parse().unwrap();
    member::issue(&ours, &folder.path().join("foreign"), &foreign, VALID, &[]).unwrap();
    let foreign = Transport::mutual(Credentials::read(&folder.path().join("foreign")).unwrap());
    assert!(call(&foreign, a()).await.is_err());
    // One that was good, and has ended.
    let ending = Transport::mutual(ours.credentials(Role::Api, "api", Duration::from_secs(1)).unwrap());
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while call(&ending, a()).await.is_ok() {
        assert!(tokio::time::Instant::now() < until, "a certificate of one second goes on for ever");
    }
    // A renewed one is shown by the same transport.
    ending.renew(ours.credentials(Role::Api, "api", VALID).unwrap());
    call(&ending, a()).await.unwrap();
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
