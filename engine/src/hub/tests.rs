//! Fetching against a hub on this machine.

mod server;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::server::{COMMIT, Fault, Server};
use super::*;
use crate::Source;

/// Large enough that a cut in the middle counts as progress.
fn weights() -> Vec<u8> {
    (0..3u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn model() -> Server {
    Server::start(&[
        ("README.md", b"not fetched".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", b"not fetched".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
    ])
}

struct Client {
    hub: Hub,
    cache: tempfile::TempDir,
    notes: Arc<Mutex<Vec<String>>>,
}

impl Client {
    fn new(endpoint: &str) -> Client {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub { endpoint: endpoint.into(), cache: cache.path().into(), token: None, offline: false };
        Client { hub, cache, notes: Arc::default() }
    }

    fn of(server: &Server) -> Client {
        Client::new(&server.endpoint)
    }

    fn progress(&self) -> Progress {
        let notes = self.notes.clone();
        Progress::lines(move |line| notes.lock().unwrap().push(line.to_string()))
    }

    fn fetch(&self) -> Result<PathBuf, ResolveError> {
        self.hub.fetch(&repo("owner/name"), &self.progress())
    }

    fn resolve(&self, spec: Option<&str>) -> Result<Source, ResolveError> {
        Source::resolve_with(spec, &self.hub, &self.progress())
    }

    /// The weights' blob.
    fn blob(&self) -> PathBuf {
        self.in_cache(&format!("snapshots/{COMMIT}/model.safetensors")).canonicalize().unwrap()
    }

    fn in_cache(&self, path: &str) -> PathBuf {
        self.cache.path().join("models--owner--name").join(path)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }
}

fn repo(id: &str) -> Repo {
    Repo { id: id.into(), revision: "main".into(), file: None, weights_sha256: None }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}

/// An address where nobody listens.
fn nobody() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[test]
fn a_model_is_fetched_whole_into_the_layout_that_all_tools_share() {
    let server = model();
    let client = Client::of(&server);
    let folder = client.fetch().unwrap();
    assert_eq!(folder, client.in_cache(&format!("snapshots/{COMMIT}")));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(std::fs::read_to_string(client.in_cache("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    assert!(link.starts_with("../../blobs") && link.to_str().unwrap().len() == "../../blobs/".len() + 64, "{link:?}");
    // hf-hub finds it there.
    let tools = hf_hub::Cache::new(client.hub.cache.clone()).model("owner/name".into());
    assert_eq!(tools.get("model.safetensors"), Some(folder.join("model.safetensors")));
}

#[test]
fn what_is_cached_is_used_without_a_single_request() {
    let server = model();
    let mut client = Client::of(&server);
    client.fetch().unwrap();
    let requests = server.asked().len();
    client.fetch().unwrap();
    client.hub.offline = true;
    client.hub.endpoint = nobody();
    assert_eq!(client.resolve(Some("owner/name")).unwrap().name(), "name");
    assert_eq!(server.asked().len(), requests);
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_its_storage() {
    let server = model();
    let mut client = Client::of(&server);
    client.hub.token = Some(Token::from("secret".to_string()));
    client.fetch().unwrap();
    for asked in server.asked() {
        let want = (!asked.path.starts_with("/storage/")).then_some("Bearer secret");
        assert_eq!(asked.authorization.as_deref(), want, "{} {}", asked.method, asked.path);
    }
    assert!(!format!("{:?}", client.hub).contains("secret"));
}

#[test]
fn a_transfer_that_is_cut_goes_on_where_it_stopped() {
    let server = model();
    server.fault(Fault::Cut(2_000_000));
    server.fault(Fault::Status(503));
    server.fault(Fault::Cut(100_000));
    let client = Client::of(&server);
    let folder = client.fetch().unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<_> = server.transfers().into_iter().map(Option::unwrap_or_default).collect();
    assert_eq!(ranges, ["", "bytes=2000000-", "bytes=2000000-", "bytes=2100000-"]);
}

#[test]
fn a_transfer_that_was_given_up_is_resumed_by_the_next_command() {
    let server = model();
    server.fault(Fault::Cut(1000));
    (0..4).for_each(|_| server.fault(Fault::Cut(0)));
    let client = Client::of(&server);
    let error = client.fetch().unwrap_err();
    assert!(matches!(error, ResolveError::Cut { done: 1000, size: 3_145_728, .. }), "{error:?}");
    let folder = client.fetch().unwrap();
    assert_eq!(server.transfers().last().unwrap().as_deref(), Some("bytes=1000-"));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_storage_without_ranges_sends_everything_again() {
    let server = model();
    server.fault(Fault::Cut(2_000_000));
    server.fault(Fault::NoRange);
    let client = Client::of(&server);
    assert_eq!(std::fs::read(client.fetch().unwrap().join("model.safetensors")).unwrap(), weights());
}

#[test]
fn what_comes_damaged_is_set_aside_and_fetched_again() {
    let server = model();
    server.fault(Fault::Flip);
    let client = Client::of(&server);
    client.fetch().unwrap();
    assert_eq!(std::fs::read(client.blob()).unwrap(), weights());
    assert!(suffixed(&client.blob(), "corrupt").exists());
    assert!(client.notes().iter().any(|note| note.contains("model.safetensors came damaged")), "{:?}", client.notes());
}

#[test]
fn what_comes_damaged_twice_is_an_error_with_both_checksums() {
    let server = model();
    server.fault(Fault::Flip);
    server.fault(Fault::Flip);
    let client = Client::of(&server);
    let error = client.fetch().unwrap_err();
    let ResolveError::Corrupt { want, got, aside, .. } = &error else { panic!("{error:?}") };
    assert!(want != got && aside.exists());
    assert!(!client.in_cache(&format!("snapshots/{COMMIT}/model.safetensors")).exists());
}

#[test]
fn what_was_damaged_in_the_cache_is_set_aside_and_fetched_again() {
    let damages: [fn(&mut Vec<u8>); 2] = [|bytes| bytes[77] ^= 1, |bytes| bytes.truncate(1_000_000)];
    for damage in damages {
        let server = model();
        let client = Client::of(&server);
        client.fetch().unwrap();
        let mut bytes = weights();
        damage(&mut bytes);
        std::fs::write(client.blob(), &bytes).unwrap();
        client.fetch().unwrap();
        assert_eq!(std::fs::read(client.blob()).unwrap(), weights());
        assert_eq!(std::fs::read(suffixed(&client.blob(), "corrupt")).unwrap(), bytes);
        assert_eq!(server.transfers().len(), 2);
        assert!(client.notes()[0].contains("damaged"), "{:?}", client.notes());
    }
}

#[test]
fn the_default_models_checksum_is_known_whatever_the_hub_says() {
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", weights()), ("tokenizer.json", b"{}".to_vec())];
    let server = Server::start(&files);
    let client = Client::of(&server);
    let pinned = Repo { weights_sha256: Some("00"), ..repo("owner/name") };
    assert!(matches!(client.hub.fetch(&pinned, &client.progress()), Err(ResolveError::Corrupt { .. })));
}

#[test]
fn shards_come_as_their_index_names_them() {
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}"#;
    let files = [
        ("config.json", b"{}".to_vec()),
        ("merges.txt", b"x".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("one.safetensors", weights()),
        ("three.safetensors", b"not fetched".to_vec()),
        ("two.safetensors", b"2".to_vec()),
        ("vocab.json", b"{}".to_vec()),
    ];
    let server = Server::start(&files);
    let client = Client::of(&server);
    let folder = client.fetch().unwrap();
    assert!(folder.join("one.safetensors").exists() && folder.join("two.safetensors").exists());
    assert!(folder.join("merges.txt").exists() && !folder.join("three.safetensors").exists());
}

#[test]
fn of_a_model_in_gguf_files_the_one_that_was_named_comes() {
    let server = Server::start(&[("name.Q4_0.gguf", weights()), ("name.Q8_0.gguf", b"not fetched".to_vec())]);
    let mut client = Client::of(&server);
    let source = client.resolve(Some("owner/name/name.Q4_0.gguf")).unwrap();
    let file = client.in_cache(&format!("snapshots/{COMMIT}/name.Q4_0.gguf"));
    assert_eq!((source.name(), source.folder()), ("name.Q4_0", &crate::Folder::Gguf(file.clone())));
    assert_eq!(std::fs::read(&file).unwrap(), weights());
    assert!(!file.with_file_name("name.Q8_0.gguf").exists());
    let refused = |spec| client.resolve(Some(spec)).unwrap_err().to_string();
    assert!(refused("owner/name/other.gguf").contains("no other.gguf"));
    assert!(refused("owner/name").contains("name one, as in owner/name/file.gguf"));
    client.hub.offline = true;
    assert_eq!(client.resolve(Some("owner/name/name.Q4_0.gguf")).unwrap(), source);
}

#[test]
fn a_model_without_its_parts_is_refused_by_their_names() {
    let refused = |files: &[(&str, Vec<u8>)]| Client::of(&Server::start(files)).fetch().unwrap_err().to_string();
    let (config, tokenizer) = (("config.json", b"{}".to_vec()), ("tokenizer.json", b"{}".to_vec()));
    assert!(refused(&[]).contains("no config.json"));
    assert!(refused(&[config.clone(), ("vocab.json", vec![])]).contains("no tokenizer.json: nor vocab.json"));
    let pickled = ("pytorch_model.bin", vec![]);
    assert!(refused(&[config.clone(), tokenizer.clone(), pickled]).contains("only safetensors"));
    let outside = ("model.safetensors.index.json", br#"{"weight_map": {"a": "../../x"}}"#.to_vec());
    assert!(refused(&[config, tokenizer, outside]).contains("names no files beside it"));
}

#[test]
fn a_renamed_model_is_found_under_its_new_name() {
    let server = model();
    let client = Client::of(&server);
    let folder = client.hub.fetch(&repo("owner/old"), &client.progress()).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn refusals_say_what_to_do() {
    let cases = [
        (401, "GatedRepo", false, "accept its terms on its page, then set HF_TOKEN"),
        (401, "RepoNotFound", false, "no such public model: check the spelling, or set HF_TOKEN"),
        (401, "", true, "your token is not valid, or there is no such model"),
        (403, "GatedRepo", true, "your token may not read it: accept the model's terms"),
        (403, "", false, "the model may be gated"),
        (404, "RepoNotFound", false, "check the spelling of owner/name"),
        (404, "RevisionNotFound", false, "choose another revision"),
        (418, "", false, "answered HTTP 418"),
    ];
    for (status, code, token, want) in cases {
        let server = model();
        server.refuse(status, code);
        let mut client = Client::of(&server);
        client.hub.token = token.then(|| Token::from("secret".to_string()));
        // Neither by name nor by default is a refusal passed over in silence.
        for spec in [Some("owner/name"), None] {
            let error = client.resolve(spec).unwrap_err().to_string();
            assert!(error.contains(want) && !error.contains("secret"), "{status} {code}: {error}");
        }
    }
}

#[test]
fn a_model_that_was_asked_for_is_never_another_one() {
    let client = Client::new(&nobody());
    let error = client.resolve(Some("owner/name")).unwrap_err();
    assert!(matches!(error, ResolveError::NotCached { .. }), "{error:?}");
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert!(client.notes().is_empty());
}

#[test]
fn without_a_hub_the_bundled_model_is_used_and_said_in_one_line() {
    let mut client = Client::new(&nobody());
    assert_eq!(client.resolve(None).unwrap(), Source::bundled());
    client.hub.offline = true;
    assert_eq!(client.resolve(None).unwrap(), Source::bundled());
    let server = model();
    server.refuse(503, "");
    client.hub.endpoint = server.endpoint.clone();
    client.hub.offline = false;
    assert_eq!(client.resolve(None).unwrap(), Source::bundled());
    let notes = client.notes();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains("connection refused") && notes[1].contains("HF_HUB_OFFLINE") && notes[2].contains("HTTP 503"));
    assert!(notes.iter().all(|note| note.contains("using the bundled model banyan-tiny") && !note.contains('\n')), "{notes:?}");
}

#[test]
fn a_name_that_can_not_be_resolved_is_no_hub() {
    let client = Client::new("http://hub.invalid");
    assert_eq!(client.resolve(None).unwrap(), Source::bundled());
    assert_eq!(client.notes().len(), 1);
}

#[test]
fn a_hub_that_answers_no_knock_is_given_up_after_three_seconds() {
    // A listener whose queue is full lets further connections hang, as a firewall does that drops them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        assert!(waiting.len() < 10_000, "the listener's queue has no end");
    }
    let client = Client::new(&format!("http://{address}"));
    let start = Instant::now();
    assert_eq!(client.resolve(None).unwrap(), Source::bundled());
    let took = start.elapsed();
    assert!(took > Duration::from_millis(2500) && took < Duration::from_millis(4500), "{took:?}");
    assert!(client.notes()[0].contains("no connection within 3 s"), "{:?}", client.notes());
}

#[test]
fn threads_that_want_one_model_fetch_it_once() {
    let server = model();
    server.fault(Fault::Wait);
    let client = Client::of(&server);
    let (said, waits) = mpsc::channel();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..3)
            .map(|_| {
                let (said, hub) = (said.clone(), client.hub.clone());
                scope.spawn(move || {
                    let progress = Progress::lines(move |line| drop(said.send(line.to_string())));
                    hub.fetch(&repo("owner/name"), &progress)
                })
            })
            .collect();
        // Two of the three wait for the one that fetches.
        for _ in 0..2 {
            let line = loop {
                let line = waits.recv().unwrap();
                if line.contains("model.safetensors") {
                    break line;
                }
            };
            assert!(line.contains("waiting for another process that fetches model.safetensors"), "{line}");
        }
        server.open_gate();
        for fetch in fetches {
            assert_eq!(std::fs::read(fetch.join().unwrap().unwrap().join("model.safetensors")).unwrap(), weights());
        }
    });
    assert_eq!(server.transfers().len(), 1);
}

#[test]
fn processes_that_want_one_model_fetch_it_once() {
    let server = model();
    server.fault(Fault::Wait);
    let client = Client::of(&server);
    let start = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "hub::tests::another_process_fetches", "--nocapture"]);
        command.env("BANYAN_TEST_ENDPOINT", &client.hub.endpoint).env("BANYAN_TEST_CACHE", &client.hub.cache);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut processes = [start(), start()];
    // The gate opens when one of them has said that it waits for the other.
    let (said, waits) = mpsc::channel();
    for process in &mut processes {
        let (said, errors) = (said.clone(), process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(errors)).map_while(Result::ok) {
                drop(said.send(line));
            }
        });
    }
    drop(said);
    assert!(waits.iter().any(|line| line.contains("waiting for another process that fetches model.safetensors")));
    server.open_gate();
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(server.transfers().len(), 1);
    assert_eq!(std::fs::read(client.blob()).unwrap(), weights());
}

/// Not a test of its own: what the processes of the test above run.
#[test]
fn another_process_fetches() {
    let (Ok(endpoint), Ok(cache)) = (std::env::var("BANYAN_TEST_ENDPOINT"), std::env::var("BANYAN_TEST_CACHE")) else { return };
    let hub = Hub { endpoint, cache: cache.into(), token: None, offline: false };
    hub.fetch(&repo("owner/name"), &Progress::stderr()).unwrap();
}

#[test]
fn the_environment_is_read_as_all_hugging_face_tools_read_it() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    let hub = |vars: &[(&str, &str)]| {
        let vars: Vec<(String, String)> = vars.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Hub::from_vars(move |name| vars.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    };
    let default = hub(&[("HOME", path)]);
    assert_eq!(default.endpoint, "https://huggingface.co");
    assert_eq!(default.cache, home.path().join(".cache/huggingface/hub"));
    assert!(default.token.is_none() && !default.offline);
    assert_eq!(hub(&[("HOME", path), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(hub(&[("HF_HOME", "/y"), ("HOME", path)]).cache, Path::new("/y/hub"));
    assert_eq!(hub(&[("HF_HUB_CACHE", "/z"), ("HF_HOME", "/y")]).cache, Path::new("/z"));
    assert_eq!(hub(&[("HF_ENDPOINT", "http://mirror:1/hub/")]).endpoint, "http://mirror:1/hub");
    assert!(hub(&[("HF_HUB_OFFLINE", "1")]).offline && hub(&[("HF_HUB_OFFLINE", "True")]).offline);
    assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline);
    std::fs::write(home.path().join("token"), "from-file\n").unwrap();
    assert_eq!(hub(&[("HF_HOME", path)]).token, Some(Token::from("from-file".to_string())));
    assert_eq!(hub(&[("HF_HOME", path), ("HF_TOKEN", "own")]).token, Some(Token::from("own".to_string())));
}
