//! A load balancer, or a name that changes.

use std::sync::{Arc, Mutex};

/// It leads new connections to these ports in turn, and leaves open ones where
/// they are.
pub async fn balancer(first: &[u16]) -> (u16, Arc<Mutex<Vec<u16>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let to = Arc::new(Mutex::new(first.to_vec()));
    let ports = Arc::clone(&to);
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut client, _)) = listener.accept().await {
            turn += 1;
            let ports = ports.lock().unwrap().clone();
            let port = ports[turn % ports.len()];
            tokio::spawn(async move {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                if let Ok(mut server) = server {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    (own, to)
}
