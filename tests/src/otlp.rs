//! A receiver of traces: OpenTelemetry's own service and messages, over gRPC.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// What was received. Ends when dropped.
pub struct Otlp {
    address: SocketAddr,
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    server: JoinHandle<()>,
}

/// A span, and which process sent it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its `service.name`.
    pub service: String,
    /// Its `service.instance.id`.
    pub instance: String,
    /// The span.
    pub span: Span,
}

impl Seen {
    /// An attribute that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        text(&self.span.attributes, name)
    }
}

fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
    match attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

impl Otlp {
    /// Listens.
    ///
    /// # Panics
    /// When it can't.
    pub async fn start() -> Otlp {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let received: Arc<Mutex<Vec<ExportTraceServiceRequest>>> = Arc::default();
        let service = TraceServiceServer::new(Receiver(Arc::clone(&received)));
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move { serving.await.expect("it serves until it is dropped") });
        Otlp { address, received, server }
    }

    /// For `--otlp`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of one trace so far.
    ///
    /// # Panics
    /// When a receiving task did.
    pub fn trace(&self, id: u128) -> Vec<Seen> {
        let received = self.received.lock().expect("nobody panics with it");
        let mut seen = Vec::new();
        for resource in received.iter().flat_map(|request| &request.resource_spans) {
            let attributes = resource.resource.as_ref().map(|resource| &resource.attributes[..]).unwrap_or_default();
            let of = |name| text(attributes, name).unwrap_or_default().to_owned();
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                if span.trace_id == id.to_be_bytes() {
                    seen.push(Seen { service: of("service.name"), instance: of("service.instance.id"), span: span.clone() });
                }
            }
        }
        seen
    }

    /// All that was received, for who looks for what should not be there.
    ///
    /// # Panics
    /// When a receiving task did.
    pub fn everything(&self) -> String {
        format!("{:?}", self.received.lock().expect("nobody panics with it"))
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Receiver(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("nobody panics with it").push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
