//! Publishes to groups with the bytes that channels_redis' pub/sub layer puts on the wire.

use redis::aio::MultiplexedConnection;
use rmp::encode;
use serde_json::Value;

use super::redis::RedisServer;

/// One connection; what is sent through it stays in order.
pub(crate) struct Publisher {
    connection: MultiplexedConnection,
    prefix: String,
}

impl Publisher {
    /// Publishes through `redis` under a layer's prefix.
    pub(crate) async fn new(redis: &RedisServer, prefix: &str) -> Self {
        Self {
            connection: redis.connection().await.expect("redis-server answers"),
            prefix: prefix.to_owned(),
        }
    }

    /// Publishes an event; returns how many replicas are subscribed.
    pub(crate) async fn send(&self, group: &str, event: &Value) -> u32 {
        self.send_bytes(group, &msgpack(event)).await
    }

    /// Publishes any bytes.
    pub(crate) async fn send_bytes(&self, group: &str, payload: &[u8]) -> u32 {
        self.try_send_bytes(group, payload)
            .await
            .expect("redis-server answers")
    }

    /// As `send`, where Redis may be away.
    pub(crate) async fn try_send(&self, group: &str, event: &Value) -> redis::RedisResult<u32> {
        self.try_send_bytes(group, &msgpack(event)).await
    }

    async fn try_send_bytes(&self, group: &str, payload: &[u8]) -> redis::RedisResult<u32> {
        redis::cmd("PUBLISH")
            .arg(format!("{}__group__{group}", self.prefix))
            .arg(payload)
            .query_async(&mut self.connection.clone())
            .await
    }
}

/// MessagePack as Python's `msgpack.packb` writes it.
pub(crate) fn msgpack(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, value).expect("a Vec takes everything");
    out
}

fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), encode::ValueWriteError> {
    let length = |n: usize| u32::try_from(n).expect("tests send little");
    match value {
        Value::Null => out.push(0xc0),
        Value::Bool(v) => out.push(if *v { 0xc3 } else { 0xc2 }),
        Value::Number(v) => match (v.as_u64(), v.as_i64()) {
            (Some(v), _) => drop(encode::write_uint(out, v)?),
            (None, Some(v)) => drop(encode::write_sint(out, v)?),
            (None, None) => encode::write_f64(out, v.as_f64().expect("a number"))?,
        },
        Value::String(v) => encode::write_str(out, v)?,
        Value::Array(v) => {
            encode::write_array_len(out, length(v.len()))?;
            v.iter().try_for_each(|v| write(out, v))?;
        }
        Value::Object(v) => {
            encode::write_map_len(out, length(v.len()))?;
            for (key, v) in v {
                encode::write_str(out, key)?;
                write(out, v)?;
            }
        }
    }
    Ok(())
}
