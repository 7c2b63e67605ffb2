//! Who may be what: certificates, tokens and roles, between real processes.

use std::time::Duration;

use banyan_proto::{
    Credentials, Expected, Role, Transport, dial,
    v1::{self, inspect_client::InspectClient, root_client::RootClient, tree_client::TreeClient},
};
use banyan_tests::{
    Banyan,
    certified::{self, Certified},
    eventually,
    forest::free_port,
    http::Http,
    process::banyan,
};
use hyper::StatusCode;
use serde_json::json;
use tonic::{Code, Status, transport::Channel};

use super::failed;

/// A cluster with certificates: its registry and its root.
struct Grove {
    certified: Certified,
    etcd: String,
    root: String,
    _registry: Banyan,
    _root: Banyan,
}

async fn grove() -> Grove {
    let certified = Certified::new();
    let tls = certified.issue(Role::Registry, "registry");
    let registry = Banyan::start(&format!("registry serve --listen 127.0.0.1:0 --tls-dir {}", tls.display()));
    let etcd = registry.fact("etcd").await;
    assert!(etcd.starts_with("https://"), "{etcd}");
    let root = member(&certified, &etcd, Role::Root, "root", "").await;
    let address = address(&root).await;
    Grove { certified, etcd, root: address, _registry: registry, _root: root }
}

/// Starts a node with a certificate of its own.
async fn member(certified: &Certified, etcd: &str, role: Role, name: &str, flags: &str) -> Banyan {
    let tls = certified.issue(role, name);
    let line = format!("node run {name} --listen 127.0.0.1:0 --etcd {etcd} --tls-dir {} {flags}", tls.display());
    let node = Banyan::start(&line);
    node.printed("is ready").await;
    node
}

async fn address(node: &Banyan) -> String {
    let printed = node.printed("is ready at ").await;
    let rest = printed.split("is ready at ").nth(1).expect("it was waited for");
    rest.split(": ").next().expect("a split has a first part").to_owned()
}

/// Dials the root as somebody.
fn dialled(who: &Transport, root: &str) -> Channel {
    who.lazily(&dial::endpoint(root).expect("a root's address is one"), Expected::root(&"root".parse().expect("a name")))
}

async fn status(who: &Transport, root: &str) -> Result<(), Status> {
    InspectClient::new(dialled(who, root)).status(v1::Target::default()).await.map(drop)
}

/// Attaches to the root as a child of that name would.
async fn attach(who: &Transport, root: &str, name: &str) -> Result<(), Status> {
    let hello = v1::Hello { name: name.to_owned(), cluster: "default".to_owned(), ..v1::Hello::default() };
    let up = futures::stream::iter([v1::Up { kind: Some(v1::up::Kind::Hello(hello)) }]);
    TreeClient::new(dialled(who, root)).attach(up).await.map(drop)
}

/// Begins to deliver as a node of that name would.
async fn deliver(who: &Transport, root: &str, name: &str) -> Result<(), Status> {
    let hello = v1::Holder { node: name.to_owned(), ..v1::Holder::default() };
    let deliveries = futures::stream::iter([v1::Delivery { kind: Some(v1::delivery::Kind::Hello(hello)) }]);
    RootClient::new(dialled(who, root)).deliver(deliveries).await.map(drop)
}

async fn ask(who: &Transport, root: &str) -> Result<(), Status> {
    RootClient::new(dialled(who, root)).ask(v1::Question::default()).await.map(drop)
}

fn denied(outcome: Result<(), Status>) {
    assert_eq!(outcome.expect_err("it should be refused").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_cluster_with_certificates_answers_from_end_to_end() {
    let grove = grove().await;
    let (certified, etcd) = (&grove.certified, &grove.etcd);
    let _node = member(certified, etcd, Role::Node, "a", "--parent root --engine fake").await;
    let tls = certified.issue(Role::Api, "api-1");
    let api = Banyan::start(&format!("api run --listen 127.0.0.1:0 --etcd {etcd} --tls-dir {}", tls.display()));
    let page = api.fact("page").await;
    let http = Http(page.trim_start_matches("http://").trim_end_matches('/').parse().expect("an address"));
    let answer = http.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[count 3]]" })).await;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::OK, "1 2 3"));
    // An operator looks in and steers; who has no certificate does not.
    let tls = certified.issue(Role::Operator, "me").display().to_string();
    let seen = banyan(&format!("node list -o name --etcd {etcd} --tls-dir {tls}")).await;
    assert_eq!(seen.out.split_whitespace().collect::<Vec<_>>(), ["a", "root"]);
    let drained = banyan(&format!("node drain a --deadline 1s --etcd {etcd} --tls-dir {tls}")).await;
    assert_eq!(drained.code, 0, "{}", drained.err);
    failed(&banyan(&format!("node list --etcd {etcd}")).await, 2, &["--etcd-ca", "--tls-dir"]);
}

#[tokio::test]
async fn a_peer_is_who_its_certificate_says_and_may_what_its_role_needs() {
    let grove = grove().await;
    let (certified, root) = (&grove.certified, grove.root.as_str());
    let node = certified.transport(Role::Node, "b");
    attach(&node, root, "b").await.expect("it is its own name");
    deliver(&node, root, "b").await.expect("it is its own name");
    // Another name than the certificate's.
    denied(attach(&node, root, "a").await);
    denied(deliver(&node, root, "a").await);
    // Other roles' calls.
    denied(ask(&node, root).await);
    let api = certified.transport(Role::Api, "api");
    denied(attach(&api, root, "api").await);
    denied(deliver(&api, root, "b").await);
    assert_eq!(ask(&api, root).await.expect_err("it asks nothing").code(), Code::InvalidArgument);
    let moved = v1::MoveRequest { name: "b".to_owned(), parent: "root".to_owned() };
    let moved = InspectClient::new(dialled(&node, root)).r#move(moved).await;
    denied(moved.map(drop));
    // A certificate that is none here: of another cluster, of none, and one that has ended.
    let other = Certified::new().transport(Role::Node, "b");
    assert_eq!(status(&other, root).await.expect_err("nobody knows it").code(), Code::Unavailable);
    assert!(status(&Transport::default(), root).await.is_err(), "it came without a certificate");
    let folder = certified.issue_for(Role::Node, "short", Duration::from_secs(2), &[]);
    let short = certified::read(&folder);
    eventually("the certificate ends", || async { Credentials::read(&folder).is_err().then_some(()) }).await;
    assert!(status(&short, root).await.is_err(), "it came with a certificate that has ended");
    status(&node, root).await.expect("a good one goes on");
}

#[tokio::test]
async fn a_node_starts_only_as_who_its_certificate_says() {
    let certified = Certified::new();
    let etcd = "http://127.0.0.1:1";
    let tls = certified.issue(Role::Node, "a").display().to_string();
    let line = |words: &str| format!("node run {words} --engine fake --listen 127.0.0.1:0 --etcd {etcd} --tls-dir {tls}");
    let says = "the certificate is banyan://default/node/a's";
    failed(&banyan(&line("b --parent root")).await, 2, &[says, "banyan://default/node/b"]);
    failed(&banyan(&line("a")).await, 2, &[says, "banyan://default/root/a"]);
    failed(&banyan(&line("a --parent root --cluster other")).await, 2, &[says, "banyan://other/node/a"]);
    let ended = certified.issue_for(Role::Node, "ended", Duration::from_secs(1), &[]);
    eventually("the certificate ends", || async { Credentials::read(&ended).is_err().then_some(()) }).await;
    let line = format!("node run ended --parent root --engine fake --listen 127.0.0.1:0 --tls-dir {}", ended.display());
    failed(&banyan(&line).await, 1, &["the certificate is not good", "banyan ca join"]);
}

#[tokio::test]
async fn nobody_listens_beyond_this_machine_without_a_certificate_unless_told_to() {
    let port = free_port();
    let node = format!("node run a --parent root --engine fake --listen 0.0.0.0:{port} --advertise 127.0.0.1:{port}");
    let told = ["no certificate", "banyan token create --role node --name a", "--insecure"];
    failed(&banyan(&node).await, 2, &told);
    failed(&banyan(&format!("registry serve --listen 0.0.0.0:{port}")).await, 2, &["no certificate", "--insecure"]);
    let up = format!("up --engine fake --listen 127.0.0.1:0 --registry-listen 0.0.0.0:{port}");
    failed(&banyan(&up).await, 2, &["no certificate", "--insecure"]);
    let registry = Banyan::start(&format!("registry serve --listen 0.0.0.0:{port} --insecure"));
    registry.printed("the registry is ready").await;
}

#[tokio::test]
async fn members_join_with_a_token_and_renew_while_they_run() {
    let certified = Certified::new();
    let (dir, registry_tls) = (certified.dir(), certified.issue(Role::Registry, "registry"));
    let registry = Banyan::start(&format!("registry serve --listen 127.0.0.1:0 --tls-dir {}", registry_tls.display()));
    let etcd = registry.fact("etcd").await;
    let authority = Banyan::start(&format!("ca serve --dir {dir} --listen 127.0.0.1:0 --etcd {etcd} --valid 6s"));
    authority.fact("address").await;
    let token = async |flags: &str| {
        let made = banyan(&format!("token create --dir {dir} --etcd {etcd} {flags}")).await;
        assert_eq!(made.code, 0, "{}", made.err);
        made.out.trim().to_owned()
    };
    // A token for one name, used by hand, and once.
    let given = token("--role root --name root").await;
    let given = format!("BANYAN_JOIN_TOKEN={given}");
    let join = async |name: &str, folder: &str| {
        let line = format!("ca join {name} --dir {}", certified.path(folder).display());
        Banyan::start_by(&["env", &given], &line).finished().await
    };
    failed(&join("usurper", "usurper").await, 1, &["the token is for root, not for usurper"]);
    assert_eq!(join("root", "root").await.code, 0);
    failed(&join("root", "root").await, 4, &["holds a certificate already"]);
    failed(&join("root", "again").await, 1, &["the token is not good", "banyan token create"]);
    let folder = certified.path("root");
    let line = format!("node run root --listen 127.0.0.1:0 --etcd {etcd} --tls-dir {}", folder.display());
    let root = Banyan::start(&line);
    let root_address = address(&root).await;
    // A token that a node takes when it starts.
    let given = format!("BANYAN_JOIN_TOKEN={}", token("").await);
    let node_folder = certified.path("node");
    let line =
        format!("node run a --parent root --engine fake --listen 127.0.0.1:0 --etcd {etcd} --tls-dir {}", node_folder.display());
    let node = Banyan::start_by(&["env", &given], &line);
    node.printed("is ready").await;
    // What the members began with has ended, and new connections to them are as good as the old ones.
    let begun = [&folder, &node_folder].map(|folder| certified::read(folder));
    let operator = certified.transport(Role::Operator, "me");
    eventually("the first certificates have ended", || async {
        let mut ended = 0;
        for old in &begun {
            ended += usize::from(status(old, &root_address).await.is_err());
        }
        (ended == begun.len()).then_some(())
    })
    .await;
    status(&operator, &root_address).await.expect("the root shows a good certificate");
    status(&certified::read(&node_folder), &root_address).await.expect("the node has a good certificate");
    node.told("shows another certificate from now on").await;
    let tls = certified.issue(Role::Operator, "me").display().to_string();
    let tree = banyan(&format!("node tree -o json --etcd {etcd} --tls-dir {tls}")).await.json();
    let state = |name: &str| {
        tree.as_array().and_then(|all| all.iter().find(|node| node["name"] == name)).map(|node| node["state"].clone())
    };
    assert_eq!((state("root"), state("a")), (Some(json!("ready")), Some(json!("ready"))), "{tree}");
}

#[tokio::test]
async fn an_authority_is_made_once_and_names_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("ca").display().to_string();
    failed(&banyan(&format!("token create --dir {dir}")).await, 3, &["banyan ca init"]);
    assert_eq!(banyan(&format!("ca init --dir {dir} --cluster prod")).await.code, 0);
    failed(&banyan(&format!("ca init --dir {dir}")).await, 4, &["holds an authority already"]);
    failed(&banyan(&format!("token create --dir {dir}")).await, 3, &["banyan ca serve"]);
    failed(&banyan(&format!("token create --dir {dir} --role root")).await, 2, &["--role root --name NAME"]);
    failed(&banyan(&format!("ca join a --dir {dir}/a")).await, 2, &["BANYAN_JOIN_TOKEN"]);
    let out = folder.path().join("a").display().to_string();
    let issued = banyan(&format!("ca issue --dir {dir} --name a --role node --out {out}")).await;
    assert!(issued.out.contains("banyan://prod/node/a"), "{issued:?}");
}

#[tokio::test]
async fn the_api_serves_https_with_files_that_may_be_replaced() {
    let certified = Certified::new();
    let names = ["127.0.0.1".to_owned()];
    let tls = certified.issue_for(Role::Api, "api-1", banyan_ca::VALID, &names);
    let up = Banyan::up(&format!("--tls-cert {0}/tls.crt --tls-key {0}/tls.key", tls.display())).await;
    let page = up.fact("page").await;
    let address = page.strip_prefix("https://").expect("it says that it is HTTPS").trim_end_matches('/').to_owned();
    let (status, shown) = https(&certified, &address).await;
    assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
    // Who speaks without encryption learns nothing.
    assert!(Http(address.parse().expect("an address")).try_get("/livez").await.is_err());
    certified.issue_for(Role::Api, "api-1", banyan_ca::VALID, &names);
    eventually("the next certificate is shown", || async { (https(&certified, &address).await.1 != shown).then_some(()) }).await;
}

/// The status line of an answer, and the certificate that was shown.
async fn https(certified: &Certified, address: &str) -> (String, Vec<u8>) {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut trusted = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(certified.authority.pem().as_bytes()).expect("it is PEM");
    trusted.add(authority).expect("it is a certificate");
    let config = rustls::ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.expect("the API listens");
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector.connect(name, stream).await.expect("its certificate is good");
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("it shows one").to_vec();
    let asked = format!("GET /livez HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    (String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned(), shown)
}

#[tokio::test]
async fn secrets_are_no_flags_and_prompts_are_in_no_log() {
    // With the shell's own words, so that the suite does not move the password.
    let line = "api run --listen 127.0.0.1:0 --store=postgres://banyan:hunter2@127.0.0.1:1/banyan --etcd http://127.0.0.1:1";
    let up = Banyan::up("--nodes 1").await;
    let etcd = up.fact("registry").await;
    let refused = banyan(&line.replace("http://127.0.0.1:1", &etcd)).await;
    failed(&refused, 2, &["a password in a flag", "BANYAN_STORE"]);
    assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    for command in ["node run", "api run", "up", "ca join", "ca serve", "token create", "registry serve", "key create"] {
        let help = banyan(&format!("{command} --help")).await.out;
        for word in help.split_whitespace().filter(|word| word.starts_with("--")) {
            let name = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let secret = ["password", "secret", "api-key", "join-token"].iter().any(|part| name.ends_with(part));
            assert!(!secret, "{command} takes a secret as the flag --{name}");
        }
    }
    // Whatever is asked, and however it ends, no log has it.
    let up = Banyan::start_by(
        &["env", "BANYAN_LOG=trace", "RUST_LOG=trace"],
        "up --nodes 1 --engine fake --listen 127.0.0.1:0 --registry-listen 127.0.0.1:0",
    );
    up.printed("Ctrl-C stops everything").await;
    let api = up.api().await;
    let prompt = "xyzzy-plugh [[count 3]]";
    assert_eq!(api.post("/v1/completions", &json!({ "model": "fake", "prompt": prompt })).await.status, StatusCode::OK);
    let wrong = json!({ "model": "fake", "prompt": prompt, "temperature": 99 });
    assert_eq!(api.post("/v1/completions", &wrong).await.status, StatusCode::BAD_REQUEST);
    let chat = json!({ "model": "fake", "messages": [{ "role": "user", "content": prompt }] });
    api.post("/v1/chat/completions", &chat).await;
    up.signal("INT").await;
    let finished = up.finished().await;
    for told in [&finished.out, &finished.err] {
        let found = told.lines().find(|line| line.contains("xyzzy") || line.contains("plugh"));
        assert_eq!(found, None);
    }
}

/// What a root says to a relayed stream's first message, which a child passes on.
async fn relayed(child: &Transport, root: &str, name: &str, relay: v1::Relay) -> v1::Relay {
    use futures::SinkExt as _;
    let (mut up, ups) = futures::channel::mpsc::channel(4);
    let hello = v1::Hello { name: name.to_owned(), cluster: "default".to_owned(), ..v1::Hello::default() };
    up.send(v1::Up { kind: Some(v1::up::Kind::Hello(hello)) }).await.expect("a new channel has room");
    let mut down = TreeClient::new(dialled(child, root)).attach(ups).await.expect("it is its own name").into_inner();
    up.send(v1::Up { kind: Some(v1::up::Kind::Relay(relay)) }).await.expect("a new channel has room");
    loop {
        let said = down.message().await.expect("the link lives").expect("the link lives");
        if let Some(v1::down::Kind::Relay(relay)) = said.kind {
            return relay;
        }
    }
}

#[tokio::test]
async fn a_node_that_passes_on_deliveries_puts_no_words_into_anothers_mouth() {
    use prost::Message as _;
    let grove = grove().await;
    let (certified, root) = (&grove.certified, grove.root.as_str());
    let [between, below] = ["between", "below"].map(|name| certified.transport(Role::Node, name));
    let hello = v1::Holder { node: "below".to_owned(), ..v1::Holder::default() };
    let message = v1::Delivery { kind: Some(v1::delivery::Kind::Hello(hello)) }.encode_to_vec();
    let by = |who: &Transport, number: u64| {
        let signature = who.sign(&[b"below", &number.to_be_bytes(), &message]).expect("it has a key");
        v1::Relay {
            node: "below".to_owned(),
            number,
            message: message.clone().into(),
            certificate: who.certificate().expect("it has one").into(),
            scheme: signature.scheme,
            signature: signature.bytes.into(),
            ..v1::Relay::default()
        }
    };
    // What the node itself signed is let in.
    let welcomed = relayed(&between, root, "between", by(&below, 1)).await;
    assert!(!welcomed.ended && !welcomed.message.is_empty(), "{welcomed:?}");
    // What the one in between says, unsigned, signed by itself, or signed for another stream, is not.
    let unsigned = v1::Relay { certificate: Default::default(), ..by(&below, 2) };
    let other_stream = v1::Relay { number: 9, ..by(&below, 3) };
    let other_words = v1::Relay { message: b"".to_vec().into(), ..by(&below, 4) };
    for forged in [unsigned, by(&between, 5), other_stream, other_words] {
        assert!(relayed(&between, root, "between", forged.clone()).await.ended, "{forged:?}");
    }
}
