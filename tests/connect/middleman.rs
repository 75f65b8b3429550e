//! Somebody between client and server, who answers in the server's place.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What he does with a connection.
#[derive(Clone, Copy, Debug)]
pub enum Does {
    /// He says that there is no TLS, and passes on everything else.
    Strips,
    /// He says that there is TLS, and breaks off.
    Breaks,
    /// He answers the request for TLS with an error of his own.
    Errs,
    /// He accepts and stays silent.
    IsSilent,
    /// He asks for the password in clear.
    AsksForThePassword,
}

/// A middleman, and all that he has heard from clients.
pub struct Middleman {
    pub port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Middleman {
    pub fn start(server: u16, does: Does) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let all = Arc::clone(&heard);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let heard = Arc::clone(&all);
                thread::spawn(move || serve(client, server, does, &heard));
            }
        });
        Self { port, heard }
    }

    /// Whether any client has said this.
    pub fn has_heard(&self, words: &str) -> bool {
        let heard = self.heard.lock().unwrap();
        heard
            .windows(words.len())
            .any(|seen| seen == words.as_bytes())
    }

    pub fn has_heard_anything(&self) -> bool {
        !self.heard.lock().unwrap().is_empty()
    }
}

fn serve(mut client: TcpStream, server: u16, does: Does, heard: &Arc<Mutex<Vec<u8>>>) {
    let mut first = [0; 8];
    if client.read_exact(&mut first).is_err() {
        return;
    }
    heard.lock().unwrap().extend(first);
    let asks_for_tls = first == [0, 0, 0, 8, 4, 210, 22, 47];
    match does {
        Does::Strips | Does::AsksForThePassword if asks_for_tls => {
            let _ = client.write_all(b"N");
            if client.read_exact(&mut first).is_err() {
                return;
            }
            heard.lock().unwrap().extend(first);
        }
        Does::Breaks if asks_for_tls => {
            let _ = client.write_all(b"Sthis is no handshake at all");
            let _ = client.read(&mut [0; 512]);
            return;
        }
        Does::Errs if asks_for_tls => {
            let _ = client.write_all(b"E\0\0\0\x1fSFATAL\0C53300\0Mcome back, dear\0\0");
            return;
        }
        Does::IsSilent => {
            listen(&mut client, heard, |_| ());
            return;
        }
        _ => {}
    }
    if matches!(does, Does::AsksForThePassword) {
        let _ = client.write_all(b"R\0\0\0\x08\0\0\0\x03");
        listen(&mut client, heard, |_| ());
        return;
    }
    let Ok(mut to) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
        return;
    };
    let _ = to.write_all(&first);
    let (mut from, mut back) = (to.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut back);
        let _ = back.shutdown(std::net::Shutdown::Both);
    });
    listen(&mut client, heard, |bytes| {
        let _ = to.write_all(bytes);
    });
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn listen(client: &mut TcpStream, heard: &Mutex<Vec<u8>>, mut pass: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(count) = client.read(&mut buffer) {
        if count == 0 {
            return;
        }
        heard.lock().unwrap().extend(&buffer[..count]);
        pass(&buffer[..count]);
    }
}
