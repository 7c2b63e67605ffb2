//! A disk that is full while a model is fetched, or what was said is to be kept. Needs root, for a file system of 1 MiB.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use banyan_tests::{
    Forest,
    clients::Wish,
    forest::{node, root},
    process::Banyan,
    socket::Socket,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::assert_told_well;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn run(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("failed to run {program}: {error}"));
    let told = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {arguments:?}: {told}; file systems need root: run ./test --all as root");
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// A file system of a given size in memory. Unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> SmallDisk {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &at.display().to_string()]);
        SmallDisk(at.to_owned())
    }

    fn grow(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), &self.0.display().to_string()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A hub that has the bundled model as `owner/name`.
async fn hub() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/banyan-tiny");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let files = names.map(|name| {
        let path = folder.join(name);
        let sha = run("sha256sum", &[&path.display().to_string()]);
        let sha = sha.split_whitespace().next().expect("a checksum").to_owned();
        (name.to_owned(), (fs::read(path).expect("the bundled model lies in the repository"), sha))
    });
    let files: Arc<BTreeMap<String, (Vec<u8>, String)>> = Arc::new(files.into_iter().collect());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let files = Arc::clone(&files);
            // A client that hangs up in the middle is what this is about.
            tokio::spawn(async move { drop(answer(stream, &files).await) });
        }
    });
    format!("http://{address}")
}

async fn answer(mut stream: TcpStream, files: &BTreeMap<String, (Vec<u8>, String)>) -> std::io::Result<()> {
    let (from, mut to) = stream.split();
    let mut lines = BufReader::new(from).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    let mut start = 0;
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        let range = line.to_ascii_lowercase();
        if let Some(from) = range.strip_prefix("range: bytes=").and_then(|range| range.strip_suffix('-')?.parse().ok()) {
            start = from;
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, headers, body) = if path.starts_with("/api/models/") {
        let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
        (200, String::new(), json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes())
    } else if let Some((bytes, sha)) = path.rsplit('/').next().and_then(|name| files.get(name)) {
        let linked = format!("etag: \"{sha}\"\r\nx-linked-etag: \"{sha}\"\r\nx-linked-size: {}\r\n", bytes.len());
        match start {
            0 => (200, linked, bytes.clone()),
            _ => {
                let range = format!("content-range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                (206, linked + &range, bytes[start..].to_vec())
            }
        }
    } else {
        (404, "x-error-code: EntryNotFound\r\n".to_owned(), Vec::new())
    };
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n", body.len());
    to.write_all(head.as_bytes()).await?;
    if method == "HEAD" { Ok(()) } else { to.write_all(&body).await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_harms_nobody_and_a_larger_one_goes_on_where_it_stopped() {
    let mut forest = Forest::bare().await;
    forest.plant([root("root")]).await;
    forest.plant([node("a", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(folder.path(), "1m");
    let (endpoint, home) = (format!("HF_ENDPOINT={}", hub().await), format!("HF_HOME={}", folder.path().display()));
    let wrapper = ["env", &endpoint, &home];
    let line = format!(
        "node run b --parent root --model owner/name --threads 1 --listen 127.0.0.1:0 --etcd {} --cluster {}",
        forest.etcd(),
        forest.cluster()
    );
    let neighbour = tokio::spawn(async move { Wish::count(200).ask(api, 0).await });
    let full = Banyan::start_by(&wrapper, &line).finished().await;
    assert!(full.code == 1 || full.code == 3, "{full:?}");
    assert!(full.err.contains("is the disk full") && full.err.contains("No space left"), "{full:?}");
    assert_told_well(&[neighbour.await.expect("no client panics")]);
    forest.whole().await;

    disk.grow("64m");
    forest.plant([node("b", "root").flags("--model owner/name --threads 1").wrapped(&wrapper)]).await;
    let body = json!({ "model": "name", "prompt": "Once upon a time", "max_tokens": 8 });
    let answer = api.post("/v1/completions", &body).await;
    assert!(answer.status.is_success(), "{answer:?}");
    forest.whole().await;
    forest.kill("b").await;
    forest.whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_history_can_be_read_and_chat_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(folder.path(), "1m");
    let up = Banyan::up(&format!("--nodes 1 --store {}", folder.path().join("store.db").display())).await;
    let api = up.api().await;
    let (mut socket, _) = Socket::open(api.0, "client_id=me", None).await.expect("it connects");
    let words = "word ".repeat(2_000);
    let turn = json!({ "text": format!("[[count 3]] {words}") });
    let mut told = String::new();
    for _ in 0..100 {
        let (done, _) = socket.turn(&turn).await.expect("an answer");
        assert_eq!((&done["type"], &done["text"]), (&json!("done"), &json!("1 2 3")), "{done}");
        told = done["history"].as_str().expect("a word").to_owned();
        if told != "kept" {
            break;
        }
    }
    assert_eq!(told, "read_only");
    let listed = api.get("/v1/conversations").await.json();
    let id = listed["data"][0]["id"].as_str().unwrap_or_else(|| panic!("{listed}")).to_owned();
    let read = api.get(&format!("/v1/conversations/{id}?last=2")).await.json();
    assert_eq!(read["items"].as_array().map(Vec::len), Some(2), "{read}");
    let more = json!({ "messages": [{ "role": "user", "content": words.repeat(20) }] });
    let refused = api.post(&format!("/v1/conversations/{id}/messages"), &more).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (507, &json!("read_only")));

    disk.grow("64m");
    let (done, _) = socket.turn(&turn).await.expect("an answer");
    assert_eq!(done["history"], "kept", "{done}");
    drop(up);
}
