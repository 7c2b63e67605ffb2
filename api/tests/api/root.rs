//! A root that plays a script: what it is asked is kept, what it answers is given.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use banyan_proto::v1::{
    self, Answer, Failed, Failure, Finish, FinishReason, Placed, Question, TokenLogprob,
    answer::Kind,
    root_server::{Root, RootServer},
};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// One line of a script.
#[derive(Clone)]
pub(crate) enum Step {
    Say(Kind),
    /// Goes on when the test says so.
    Await(Arc<Notify>),
    /// The stream breaks.
    Break,
    /// Says nothing more, and reports that the query was dropped.
    Hang,
}

/// What to answer to the n-th question, counted from 0.
pub(crate) type Script = Arc<dyn Fn(usize, &v1::Generation) -> Vec<Step> + Send + Sync>;

pub(crate) fn placed(node: &str, running: bool) -> Step {
    let hop = v1::Hop { node: "a".into(), reason: v1::Reason::ChildWithRoom.into(), spent_us: 1500 };
    Step::Say(Kind::Placed(Placed { node: node.into(), running, attempt: 1, trail: vec![hop], ..Placed::default() }))
}

/// One token at a position.
pub(crate) fn token(position: u32, text: &str) -> Step {
    tokens(position, text, vec![])
}

pub(crate) fn tokens(position: u32, text: &str, logprobs: Vec<TokenLogprob>) -> Step {
    let chunk = v1::Chunk { text: text.into(), logprobs, told: None }.encode_to_vec().into();
    Step::Say(Kind::Tokens(v1::Tokens { position, ids: vec![position + 100], chunk }))
}

/// The first token, and what was asked of its prompt.
pub(crate) fn echoing(prompt: &str, of_prompt: Vec<TokenLogprob>, text: &str, logprobs: Vec<TokenLogprob>) -> Step {
    let told = Some(v1::Told { text: prompt.into(), logprobs: of_prompt, embedding: vec![] });
    let chunk = v1::Chunk { text: text.into(), logprobs, told }.encode_to_vec().into();
    Step::Say(Kind::Tokens(v1::Tokens { position: 0, ids: vec![100], chunk }))
}

pub(crate) fn logprob(text: &str, logprob: f32, top: &[(&str, f32)]) -> TokenLogprob {
    let top = top.iter().map(|(text, logprob)| self::logprob(text, *logprob, &[])).collect();
    TokenLogprob { token: 7, bytes: text.to_owned().into(), logprob, top }
}

pub(crate) fn end(completion_tokens: u32) -> Step {
    end_with(Finish { completion_tokens, ..finish() })
}

pub(crate) fn finish() -> Finish {
    Finish {
        reason: FinishReason::Stop.into(),
        prompt_tokens: 5,
        completion_tokens: 2,
        cached_tokens: 1,
        model: "tiny".into(),
        fingerprint: "fp_1".into(),
        ..Default::default()
    }
}

pub(crate) fn end_with(finish: Finish) -> Step {
    Step::Say(Kind::End(v1::End { finish: finish.encode_to_vec().into() }))
}

pub(crate) fn failed(reason: Failure) -> Failed {
    Failed { reason: reason.into(), ..Default::default() }
}

pub(crate) fn fails(failed: Failed) -> Step {
    Step::Say(Kind::Failed(failed))
}

/// A whole small answer.
pub(crate) fn hello() -> Vec<Step> {
    vec![placed("leaf-1", true), token(0, "Hello"), token(1, " there"), end(2)]
}

/// A running one, in a runtime of its own, so that it and its connections can die at once, as a process does.
pub(crate) struct ScriptedRoot {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(v1::Header, v1::Generation)>>>,
    dropped: mpsc::UnboundedReceiver<()>,
    runtime: Option<Runtime>,
}

impl ScriptedRoot {
    pub(crate) async fn start(script: Script) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    pub(crate) fn on(listener: TcpListener, script: Script) -> Self {
        let address = listener.local_addr().unwrap();
        let listener = listener.into_std().unwrap();
        let (dropped, drops) = mpsc::unbounded_channel();
        let asked = Arc::default();
        let player = Player { script, asked: Arc::clone(&asked), dropped };
        let server = tonic::transport::Server::builder().add_service(RootServer::new(player));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        ScriptedRoot { address, asked, dropped: drops, runtime: Some(runtime) }
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<(v1::Header, v1::Generation)> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until a hanging query was cancelled.
    pub(crate) async fn sees_a_query_dropped(&mut self) {
        self.dropped.recv().await.unwrap();
    }
}

impl Drop for ScriptedRoot {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Player {
    script: Script,
    asked: Arc<Mutex<Vec<(v1::Header, v1::Generation)>>>,
    dropped: mpsc::UnboundedSender<()>,
}

#[tonic::async_trait]
impl Root for Player {
    type AskStream = ReceiverStream<Result<Answer, Status>>;
    type AttachStream = ReceiverStream<Result<Answer, Status>>;
    type DeliverStream = ReceiverStream<Result<v1::Control, Status>>;

    async fn ask(&self, question: Request<Question>) -> Result<Response<Self::AskStream>, Status> {
        let question = question.into_inner();
        let generation = v1::Generation::decode(question.payload).unwrap();
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((v1::Header::decode(question.header).unwrap(), generation.clone()));
            asked.len() - 1
        };
        let steps = (self.script)(number, &generation);
        let (answer, answers) = mpsc::channel(1);
        let dropped = self.dropped.clone();
        tokio::spawn(async move {
            for step in steps {
                let sent = match step {
                    Step::Say(kind) => answer.send(Ok(Answer { kind: Some(kind) })).await,
                    Step::Break => answer.send(Err(Status::unavailable("broken"))).await,
                    Step::Await(go) => {
                        tokio::select! {
                            () = go.notified() => Ok(()),
                            () = answer.closed() => { let _ = dropped.send(()); return; }
                        }
                    }
                    Step::Hang => {
                        answer.closed().await;
                        let _ = dropped.send(());
                        return;
                    }
                };
                if sent.is_err() {
                    let _ = dropped.send(());
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn attach(&self, _: Request<v1::AnswerRef>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("a scripted root keeps nothing"))
    }

    async fn cancel(&self, _: Request<v1::AnswerRef>) -> Result<Response<v1::Cancelled>, Status> {
        Err(Status::unimplemented("a scripted root keeps nothing"))
    }

    async fn deliver(&self, _: Request<Streaming<v1::Delivery>>) -> Result<Response<Self::DeliverStream>, Status> {
        Err(Status::unimplemented("a scripted root has no nodes"))
    }
}
