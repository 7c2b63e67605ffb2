//! What deploy/ starts, as its supervisors start it: systemd's units, probes, a cloud's notice, and a packed release.

use std::{collections::BTreeMap, fs, os::unix::net::UnixDatagram, path::Path, sync::Arc, time::Duration};

use banyan_tests::process::binary;
use hyper::{Request, Response, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::process::{Child, Command};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    grove, node,
    shell::{command, shell},
};

fn deploy(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// A unit's settings; those that come several times have several values.
fn unit(name: &str) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(deploy("systemd").join(name)).expect("a unit of the repository");
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '['])) {
        if let Some((key, value)) = line.split_once('=') {
            settings.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    settings
}

/// A unit's process, and what it tells the supervisor that this test is.
struct Supervised {
    process: Child,
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Supervised {
    /// As systemd starts the unit, with these variables in its environment files.
    fn start(home: &Path, name: &str, instance: &str, environment: &[(&str, &str)]) -> Supervised {
        let settings = unit(name);
        assert_eq!(settings["Type"], ["notify"]);
        let socket = home.join(format!("notify-{instance}"));
        let listening = UnixDatagram::bind(&socket).expect("a socket");
        listening.set_nonblocking(true).expect("a setting of its own socket");
        let [line] = &settings["ExecStart"][..] else { panic!("one command: {settings:?}") };
        let line = line.replace("%i", instance).replace("/usr/local/bin/banyan", "exec banyan");
        let line = line.replace("/var/lib", &home.display().to_string());
        let mut process = command(home, &line);
        for setting in settings.get("Environment").into_iter().flatten() {
            let (name, value) = setting.split_once('=').expect("a variable");
            process.env(
                name,
                value.replace("/var/lib", &home.display().to_string()).replace("/var/cache", &home.display().to_string()),
            );
        }
        // Quicker than the unit's, so that a beat is seen soon.
        process.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
        process.envs(environment.iter().copied());
        Supervised { process: process.spawn().expect("it starts"), socket: listening, told: Vec::new() }
    }

    /// Waits until it tells a state.
    async fn tells(&mut self, state: &str) {
        let begun = std::time::Instant::now();
        while !self.told.iter().any(|told| told == state) {
            let mut buffer = [0; 256];
            match self.socket.recv(&mut buffer) {
                Ok(read) => self.told.push(String::from_utf8_lossy(&buffer[..read]).into_owned()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            assert!(begun.elapsed() < banyan_tests::eventually::PATIENCE, "it never tells {state}, only {:?}", self.told);
            assert!(self.process.try_wait().expect("one's own child").is_none() || state == "STOPPING=1", "it has ended");
        }
    }

    async fn stops_well(mut self) {
        // Room in the socket for what is told next.
        while self.socket.recv(&mut [0; 256]).is_ok() {}
        let pid = self.process.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(sent.is_ok_and(|status| status.success()));
        self.tells("STOPPING=1").await;
        let ended = self.process.wait().await.expect("one's own child");
        assert!(ended.success(), "{ended}");
    }
}

#[tokio::test]
async fn units_tell_systemd_that_they_are_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path();
    fs::create_dir(home.join("banyan")).expect("a folder");
    fs::create_dir(home.join("banyan-registry")).expect("a folder");
    let listen = format!("127.0.0.1:{}", banyan_tests::forest::free_port());
    let etcd = format!("http://{listen}");
    let anywhere = [("BANYAN_LISTEN", "127.0.0.1:0"), ("BANYAN_ETCD", etcd.as_str())];
    let mut registry = Supervised::start(home, "banyan-registry.service", "registry", &[("BANYAN_REGISTRY_LISTEN", &listen)]);
    registry.tells("READY=1").await;
    let mut root = Supervised::start(home, "banyan-node@.service", "root", &anywhere);
    root.tells("READY=1").await;
    let standby = [&anywhere[..], &[("BANYAN_STANDBY", "true")]].concat();
    let mut standby = Supervised::start(home, "banyan-node@.service", "root-2", &standby);
    standby.tells("READY=1").await;
    let leaf = [&anywhere[..], &[("BANYAN_PARENT", "root"), ("BANYAN_ENGINE", "fake")]].concat();
    let mut leaf = Supervised::start(home, "banyan-node@.service", "leaf", &leaf);
    let mut api = Supervised::start(home, "banyan-api.service", "api", &anywhere);
    for process in [&mut leaf, &mut api] {
        process.tells("READY=1").await;
        process.tells("WATCHDOG=1").await;
    }
    let listed = shell(home, &format!("banyan node list -o name --etcd {etcd}")).await;
    assert_eq!(listed.out.split_whitespace().collect::<Vec<_>>(), ["leaf", "root", "root-2"], "{}", listed.err);
    for process in [api, leaf, root, standby, registry] {
        process.stops_well().await;
    }
    assert!(home.join("banyan-registry/registry.json").exists() && home.join("banyan/store.db").exists());
}

#[tokio::test]
async fn units_are_what_systemd_understands() {
    let has_systemd = Command::new("systemd-analyze").arg("--version").output().await.is_ok_and(|ran| ran.status.success());
    for unit in fs::read_dir(deploy("systemd")).expect("the repository's units").flatten() {
        let settings = self::unit(&unit.file_name().to_string_lossy());
        for wanted in ["DynamicUser", "NoNewPrivileges", "ProtectSystem", "SystemCallFilter", "CapabilityBoundingSet", "Restart"]
        {
            assert!(settings.contains_key(wanted), "{:?} has no {wanted}", unit.file_name());
        }
        if has_systemd {
            let ran =
                Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit.path()).output().await.expect("it ran");
            let told = String::from_utf8_lossy(&ran.stderr).into_owned();
            // The programs are not installed here, which is all that it may find.
            let wrong: Vec<&str> =
                told.lines().filter(|line| line.contains("banyan") && !line.contains("is not executable")).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }
}

#[tokio::test]
async fn probes_see_a_node_serve_and_leave() {
    let (_registry, _root, etcd) = grove().await;
    let leaf = node("leaf", "root", &etcd);
    let ready = leaf.printed("is ready at ").await;
    let address = ready.split("is ready at ").nth(1).and_then(|rest| rest.split(": ").next()).expect("an address").to_owned();
    let dialed = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address").connect().await;
    let mut client = HealthClient::new(dialed.expect("it listens"));
    let mut ask = async || client.check(HealthCheckRequest::default()).await.map(|answer| answer.into_inner().status());
    assert_eq!(ask().await.expect("an answer"), ServingStatus::Serving);
    leaf.signal("TERM").await;
    assert_eq!(leaf.finished().await.code, 0);
    assert!(ask().await.is_err(), "nobody answers for it");
}

#[tokio::test]
async fn a_clouds_notice_drains_the_node() {
    let (_registry, _root, etcd) = grove().await;
    let leaf = node("leaf", "root", &etcd);
    leaf.printed("is ready").await;
    // The metadata server says for a while that nothing is to come.
    let (asked, metadata) =
        (Arc::new(std::sync::atomic::AtomicUsize::new(0)), tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    let address = metadata.local_addr().expect("an address");
    let counted = Arc::clone(&asked);
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = metadata.accept().await {
            let counted = Arc::clone(&counted);
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let notice = request.uri().path().ends_with("/spot/instance-action");
                let early = notice && counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
                let status = if early || request.uri().path().contains("computeMetadata") { 404 } else { 200 };
                async move { Response::builder().status(status).body("a-token".to_owned()) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let line = format!(
        "METADATA=http://{address} PREEMPT_EVERY=0.1 BANYAN={} BANYAN_ETCD={etcd} {} leaf",
        binary().display(),
        deploy("preempt.sh").display()
    );
    let told = shell(folder.path(), &line).await;
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.contains("draining leaf") && asked.load(std::sync::atomic::Ordering::Relaxed) >= 3, "{told:?}");
    assert_eq!(leaf.finished().await.code, 0);
    serving.abort();
}

#[tokio::test]
async fn a_release_has_all_that_a_machine_needs_and_runs_from_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = format!("BANYAN_BUILT={} {} cpu $HOME/out", binary().display(), deploy("release.sh").display());
    let packed = shell(folder.path(), &line).await;
    assert_eq!(packed.code, 0, "{packed:?}");
    let line =
        "cd out && sha256sum -c SHA256SUMS && tar -xzf *.tar.gz && cd banyan-*-cpu && ./banyan --version && find . -type f";
    let unpacked = shell(folder.path(), line).await;
    for file in ["./banyan", "./man/banyan-up.1", "./completions/banyan.zsh", "./systemd/banyan-node@.service", "./preempt.sh"] {
        assert!(unpacked.out.lines().any(|line| line == file), "{file}: {unpacked:?}");
    }
}
