//! A client of the chat over WebSockets.

use std::net::SocketAddr;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _, http::HeaderValue},
};

use crate::eventually::PATIENCE;

/// A conversation. Dropping it closes the socket.
pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Connects, with a key where one is needed, and gives the first message back too.
    ///
    /// # Errors
    /// When nobody is there, or lets nobody in.
    pub async fn open(at: SocketAddr, client: &str, key: Option<&str>) -> Result<(Socket, Value), String> {
        let url = format!("ws://{at}/v1/chat/ws?{client}");
        let mut request = url.into_client_request().map_err(|error| error.to_string())?;
        if let Some(key) = key {
            let protocols = HeaderValue::try_from(format!("banyan, banyan-key.{key}")).expect("a key is a header's value");
            request.headers_mut().insert("sec-websocket-protocol", protocols);
        }
        let (stream, _) = connect_async(request).await.map_err(|error| error.to_string())?;
        let mut socket = Socket(stream);
        let ready = socket.hear().await?;
        Ok((socket, ready))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the other end has gone.
    pub async fn say(&mut self, value: &Value) -> Result<(), String> {
        self.0.send(Message::text(value.to_string())).await.map_err(|error| error.to_string())
    }

    /// The next message.
    ///
    /// # Errors
    /// When the other end has gone, with its reason where it gave one.
    ///
    /// # Panics
    /// When nothing comes.
    pub async fn hear(&mut self) -> Result<Value, String> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("a message comes") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).map_err(|error| error.to_string()),
                Some(Ok(Message::Close(Some(frame)))) => return Err(format!("closed: {}", frame.reason)),
                Some(Ok(Message::Close(None))) | None => return Err("closed".to_owned()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// Says something, and hears the answer to its end: the last message, and how many came before it.
    ///
    /// # Errors
    /// When the other end goes before.
    pub async fn turn(&mut self, value: &Value) -> Result<(Value, usize), String> {
        self.say(value).await?;
        for tokens in 0.. {
            let heard = self.hear().await?;
            if heard["type"] != "token" {
                return Ok((heard, tokens));
            }
        }
        unreachable!("there is no end of numbers")
    }
}
