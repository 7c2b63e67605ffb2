//! This machine: processor, memory, device, model files, open files, ports, clock.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::{SystemTime, UNIX_EPOCH},
};

use banyan_engine::{Cached, Gpu, Hardware, Hub, Source};

use super::Finding;
use crate::{listen, output};

/// A model, its KV and the program itself.
const MEMORY_MIN: u64 = 1 << 30;
/// Twice what an API with all its connections has open.
const FILES_MIN: u64 = 20_000;
/// When this program was written: a clock that says less was never set.
const WRITTEN_S: u64 = 1_795_000_000;
/// Loading and running a model takes its size and KV beside it.
const MODEL_SHARE: f64 = 1.25;

pub(super) async fn look(model: Option<&str>) -> Vec<Finding> {
    let hardware = Hardware::here();
    let mut findings = vec![
        cores(&hardware),
        memory(hardware.memory),
        device(hardware.gpu),
        model_files(model, Hub::from_env().cached().unwrap_or_default().as_slice(), hardware.memory),
        files(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default()),
        clock(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
    ];
    let ports = [("the registry", listen::REGISTRY, "--registry-listen"), ("the API", listen::API, "--listen")];
    findings.extend(ports.map(|(whose, address, flag)| port(whose, address, flag)));
    findings
}

fn cores(hardware: &Hardware) -> Finding {
    let found = format!("{} with {}", output::count(hardware.cores, "core"), hardware.instructions);
    match (hardware.cores, hardware.instructions) {
        (_, "portable") => {
            Finding::notice("cores", found, "models run slowly without AVX2: take another machine where speed matters")
        }
        (1, _) => Finding::notice("cores", found, "one core serves a small model only: give the process or its container more"),
        _ => Finding::good("cores", found),
    }
}

fn memory(available: Option<u64>) -> Finding {
    match available {
        None => Finding::notice("memory", "the system does not say how much is free", "see that a model and its KV fit"),
        Some(bytes) if bytes < MEMORY_MIN => Finding::bad(
            "memory",
            format!("{} are free", output::bytes(bytes)),
            "end other programs, raise the container's limit, or take a smaller `--dtype`",
        ),
        Some(bytes) => Finding::good("memory", format!("{} are free", output::bytes(bytes))),
    }
}

fn device(gpu: Gpu) -> Finding {
    let has_driver = std::path::Path::new("/dev/nvidia0").exists();
    match gpu {
        Gpu::Usable => Finding::good("device", "cuda:0 answers"),
        Gpu::None if has_driver => Finding::bad(
            "device",
            "there is a GPU, and CUDA does not answer",
            "see what `nvidia-smi` says; `--device cpu` does without",
        ),
        Gpu::None => {
            Finding::notice("device", "cpu; CUDA finds no GPU", "in a container, start it with the GPU: `docker run --gpus all`")
        }
        Gpu::NotBuilt if has_driver => Finding::notice(
            "device",
            "cpu; there is a GPU, and this build can't use it",
            "take the cuda build: `cargo build --release --features cuda`",
        ),
        Gpu::NotBuilt => Finding::good("device", "cpu"),
    }
}

fn model_files(wanted: Option<&str>, cached: &[Cached], memory: Option<u64>) -> Finding {
    let name = Source::full_name(wanted.unwrap_or("gpt2"));
    let path = std::path::Path::new(name);
    if name == Source::bundled().name() {
        return Finding::good("model", format!("{name} is in this program"));
    }
    if path.exists() {
        return match Source::resolve(Some(name), &banyan_engine::Progress::silent()) {
            Ok(source) => Finding::good("model", format!("{} in {name}", source.name())),
            Err(error) => Finding::bad("model", error.to_string(), "name a folder in Hugging Face layout, or a .gguf file"),
        };
    }
    match cached.iter().find(|model| model.name == name) {
        None if wanted.is_none() => Finding::notice(
            "model",
            format!("{name} is not on this machine"),
            "the first `banyan up` fetches it, or serves banyan-tiny where no hub is reached; `banyan model pull gpt2` fetches it now",
        ),
        None => Finding::bad("model", format!("{name} is not on this machine"), format!("`banyan model pull {name}` fetches it")),
        Some(model) if !model.whole => {
            Finding::bad("model", format!("{name} is incomplete"), format!("`banyan model pull {name}` fetches the rest"))
        }
        Some(model) if memory.is_some_and(|memory| model.bytes as f64 * MODEL_SHARE > memory as f64) => Finding::bad(
            "model",
            format!("{name} takes {}, and less is free", output::bytes((model.bytes as f64 * MODEL_SHARE) as u64)),
            "take a smaller `--dtype` such as q8, or a machine with more memory",
        ),
        Some(model) => Finding::good("model", format!("{name}, {}", output::bytes(model.bytes))),
    }
}

/// From /proc/self/limits.
fn files(limits: &str) -> Finding {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()).and_then(|soft| match soft {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    match soft {
        None => Finding::notice("files", "the system does not say how many may be open", "an API with many clients wants 20000"),
        Some(files) if files < FILES_MIN => Finding::notice(
            "files",
            format!("{files} may be open"),
            format!("an API for thousands of clients wants more: `ulimit -n {FILES_MIN}`, or LimitNOFILE= in its unit"),
        ),
        Some(files) => Finding::good(
            "files",
            if files == u64::MAX { "any number may be open".to_owned() } else { format!("{files} may be open") },
        ),
    }
}

fn clock(now_s: u64) -> Finding {
    if now_s < WRITTEN_S {
        let todo = "set it: `timedatectl set-ntp true`; the tree does not mind, certificates and keys do";
        return Finding::bad("clock", format!("{now_s} s after 1970, before this program was written"), todo);
    }
    Finding::good("clock", "runs")
}

fn port(whose: &str, address: &str, flag: &str) -> Finding {
    let address: SocketAddr = address.parse().expect("a default address is one");
    match TcpListener::bind(address) {
        Ok(_) => Finding::good("port", format!("{address} is free for {whose}")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::notice(
            "port",
            format!("somebody listens on {address}, where {whose} would"),
            format!("fine where that is Banyan or etcd (see below); else choose another port with `{flag} HOST:PORT`"),
        ),
        Err(error) => {
            Finding::bad("port", format!("{address} can't be bound: {error}"), format!("choose another with `{flag} HOST:PORT`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn a_machine_is_judged_by_what_a_tree_needs() {
        assert_eq!(memory(Some(8 << 30)).state, State::Good);
        assert_eq!(memory(Some(100 << 20)).state, State::Bad);
        assert_eq!(clock(0).state, State::Bad);
        assert_eq!(files("Max open files            1024                 524288               files").state, State::Notice);
        assert_eq!(files("Max open files            unlimited            unlimited            files").state, State::Good);
        assert_eq!(files("").state, State::Notice);
    }

    #[test]
    fn a_model_is_there_or_the_command_that_fetches_it_is_told() {
        assert_eq!(model_files(Some("banyan-tiny"), &[], None).state, State::Good);
        let missing = model_files(Some("owner/name"), &[], None);
        assert_eq!((missing.state, missing.todo.as_deref()), (State::Bad, Some("`banyan model pull owner/name` fetches it")));
        assert_eq!(model_files(None, &[], None).state, State::Notice);
    }

    #[test]
    fn a_taken_port_is_a_notice_for_it_may_be_ours() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert_eq!(port("the API", &address, "--listen").state, State::Notice);
        drop(taken);
        assert_eq!(port("the API", &address, "--listen").state, State::Good);
    }
}
