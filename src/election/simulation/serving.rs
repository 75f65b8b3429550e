//! What servers do when something reaches them: requests, commits, promotions.

use super::event::{Event, Kept, Order, Reply, Request, Segment, Who, Write};
use super::ledger::Promotion;
use super::network::End;
use super::server::{Pending, Session};
use super::world::World;
use super::{KEEPALIVE, Millis};
use crate::election::promotion::Premise;

impl World {
    pub(super) fn in_server(&mut self, event: Event) {
        let place = event.server();
        let frozen_until = self.servers[place].frozen_until;
        // The kernel goes on, so that connections end all the same.
        if frozen_until > self.now && !matches!(event, Event::Keepalive { .. }) {
            return self.at(frozen_until, event);
        }
        match event {
            Event::Request {
                of,
                server,
                boot,
                request,
            } => {
                let it = &self.servers[server];
                if it.up && it.boot == boot {
                    self.serve(of, server, request);
                } else {
                    self.not_there(of, server, &request);
                }
            }
            Event::Follow { server } => self.follow(server),
            Event::Deliver {
                server,
                stream,
                end,
            } => self.deliver(server, stream, end),
            Event::Flushed {
                server,
                by,
                stream,
                has,
            } if self.servers[by].streams(stream) && self.is_alive(by) => {
                self.servers[server].flushed[by] = has;
                self.confirm(server);
            }
            Event::Broken { server, stream } if self.servers[server].streams(stream) => {
                self.break_stream(server);
            }
            Event::Promoted {
                server,
                boot,
                asked,
                newest,
                yielded,
            } => self.open(server, boot, (asked, newest), yielded),
            Event::Restartpoint { server } => {
                let it = &mut self.servers[server];
                it.control = it.timeline();
            }
            Event::Keepalive { server, attempt } => self.keepalive(server, attempt),
            _ => {}
        }
    }

    fn not_there(&mut self, of: Who, server: usize, request: &Request) {
        match *request {
            Request::Facts { number } => self.respond(of, server, Reply::Refused { number }),
            Request::Open { attempt, step }
            | Request::Lock { attempt, step }
            | Request::Ask { attempt, step }
            | Request::Promote { attempt, step, .. } => {
                self.respond(of, server, Reply::Broken { attempt, step });
            }
            Request::Claim { number, step }
            | Request::Look { number, step }
            | Request::Fence { number, step }
            | Request::Lift { number, step } => {
                self.respond(of, server, Reply::Lost { number, step });
            }
            Request::Write { .. } | Request::Heartbeat | Request::Close { .. } => {}
        }
    }

    fn serve(&mut self, of: Who, place: usize, request: Request) {
        let (now, confirming) = (self.now, self.plan.confirming);
        let server = &mut self.servers[place];
        let known = |attempt| server.has_session(attempt);
        let reply = match request {
            Request::Facts { number } => Reply::Facts {
                number,
                facts: server.facts(confirming, now),
            },
            Request::Write { write } => {
                return self.write_there(place, Some((of, write.generation)));
            }
            Request::Heartbeat => return self.write_there(place, None),
            Request::Open { attempt, step } => {
                server.sessions.push(Session {
                    attempt,
                    of,
                    silent_since: None,
                });
                let server = place;
                self.after(KEEPALIVE / 4, Event::Keepalive { server, attempt });
                Reply::Opened { attempt, step }
            }
            Request::Close { attempt } => return server.end_session(attempt),
            Request::Claim { .. }
            | Request::Look { .. }
            | Request::Fence { .. }
            | Request::Lift { .. } => return self.serve_switch(of, place, &request),
            Request::Lock { attempt, step }
            | Request::Ask { attempt, step }
            | Request::Promote { attempt, step, .. }
                if !known(attempt) =>
            {
                Reply::Broken { attempt, step }
            }
            Request::Lock { attempt, step } => {
                let holder = *server.lock.get_or_insert(attempt);
                let taken = holder == attempt;
                Reply::Locked {
                    attempt,
                    step,
                    taken,
                }
            }
            Request::Ask { attempt, step } => Reply::Told {
                attempt,
                step,
                facts: server.facts(confirming, now),
                at: now,
            },
            Request::Promote {
                attempt,
                step,
                asked,
                newest,
                order,
            } => self.ordered(place, (attempt, step), (asked, newest), &order),
        };
        self.respond(of, place, reply);
    }

    /// What a switchover asks of the server.
    fn serve_switch(&mut self, of: Who, place: usize, request: &Request) {
        let (now, confirming, claims) = (self.now, self.plan.confirming, self.plan.rules.claims);
        let server = &mut self.servers[place];
        let reply = match *request {
            Request::Claim { number, step } => {
                let taken = !claims || *server.claim.get_or_insert(number) == number;
                server.sessions.push(Session {
                    attempt: number,
                    of,
                    silent_since: None,
                });
                let event = Event::Keepalive {
                    server: place,
                    attempt: number,
                };
                self.after(KEEPALIVE / 4, event);
                Reply::Claimed {
                    number,
                    step,
                    taken,
                }
            }
            Request::Look { number, step } => Reply::Seen {
                number,
                step,
                facts: server.facts(confirming, now),
            },
            Request::Fence { number, step } if server.primary && server.has_session(number) => {
                server.fenced = Some(now);
                // The connections of others end, and what they held with them.
                server.pending.clear();
                server.sessions.retain(|session| session.attempt == number);
                server.lock = None;
                Reply::Fenced {
                    number,
                    step,
                    end: server.log.len() as u64,
                }
            }
            Request::Lift { number, step } => {
                // Over whichever connection; another's fence is none of its business.
                if !claims || server.claim.is_none_or(|claim| claim == number) {
                    server.fenced = None;
                }
                Reply::Lifted { number, step }
            }
            Request::Fence { number, step } => Reply::Lost { number, step },
            _ => return,
        };
        self.respond(of, place, reply);
    }

    /// The server is to be promoted.
    fn ordered(
        &mut self,
        place: usize,
        (attempt, step): (u64, u32),
        (asked, newest): (Millis, u32),
        order: &Order,
    ) -> Reply {
        let server = &self.servers[place];
        if server.primary {
            return Reply::Broken { attempt, step };
        }
        if self.plan.rules.premise && !server.is_to_obey(order, self.now) {
            return Reply::Outdated { attempt, step };
        }
        self.check_order(place, order);
        let yielded = order.rests_on == Premise::Lately;
        self.promote(place, (asked, newest), yielded);
        Reply::Promoting { attempt, step }
    }

    fn write_there(&mut self, place: usize, of: Option<(Who, u64)>) {
        let server = &self.servers[place];
        if !server.primary || of.is_some() && server.fenced.is_some() {
            return;
        }
        let record = self.append(place);
        if let Some((of, generation)) = of {
            let server = &mut self.servers[place];
            let end = server.log.len();
            server.pending.push(Pending {
                record,
                end,
                of,
                generation,
            });
            self.confirm(place);
        }
    }

    fn append(&mut self, place: usize) -> u64 {
        let record = self.ledger.number();
        self.servers[place].log.push(record);
        self.ship_from(place);
        record
    }

    /// Answers the commits that enough standbys have.
    fn confirm(&mut self, place: usize) {
        let (confirming, now) = (self.plan.confirming, self.now);
        let server = &mut self.servers[place];
        let flushed = server.flushed.clone();
        let (timeline, promotion) = (server.timeline(), server.promotion());
        let mut done = Vec::new();
        server.pending.retain(|pending| {
            let has = flushed.iter().filter(|(end, _)| *end >= pending.end);
            let mut times: Vec<Millis> = has.map(|(_, at)| *at).collect();
            times.sort_unstable();
            let enough = confirming == 0 || times.len() >= confirming;
            if enough {
                let flushed = confirming.checked_sub(1).map_or(now, |last| times[last]);
                done.push((*pending, flushed));
            }
            !enough
        });
        for (pending, flushed) in done {
            let kept = Kept {
                record: pending.record,
                end: pending.end,
                timeline,
                promotion,
                flushed,
                of: pending.of,
            };
            let write = Write {
                of: pending.of,
                server: place,
                generation: pending.generation,
            };
            self.respond(pending.of, place, Reply::Written { write, kept });
        }
    }

    /// `pg_promote`: it follows nobody any more, and takes writes a while later.
    fn promote(&mut self, place: usize, (asked, newest): (Millis, u32), yielded: bool) {
        if std::mem::replace(&mut self.servers[place].promoting, true) {
            return;
        }
        self.note(|| format!("s{place} is being promoted"));
        self.break_stream(place);
        self.servers[place].waiting = false;
        let boot = self.servers[place].boot;
        let pause = self.chance.skewed(30, 2_000);
        let event = Event::Promoted {
            server: place,
            boot,
            asked,
            newest,
            yielded,
        };
        self.after(pause, event);
    }

    fn open(&mut self, place: usize, boot: u32, (asked, newest): (Millis, u32), yielded: bool) {
        let (now, server) = (self.now, &mut self.servers[place]);
        if server.boot != boot || !server.promoting {
            return;
        }
        let timeline = server.heard_of.max(server.timeline()) + 1;
        let promotion = self.ledger.promoted(Promotion {
            parent: server.promotion(),
            timeline,
            asked,
            newest,
            yielded,
            opened: now,
        });
        (server.promoting, server.primary, server.since) = (false, true, now);
        server.heard_of = timeline;
        server.flushed.fill((0, 0));
        server.history.push(Segment {
            timeline,
            begins: server.log.len(),
            promotion,
        });
        self.append(place);
        self.note(|| format!("s{place} takes writes on {timeline}"));
        let pause = self.chance.within(500, 5_000);
        self.after(pause, Event::Restartpoint { server: place });
    }

    /// Ends the connection of a process that is not heard any more.
    fn keepalive(&mut self, place: usize, attempt: u64) {
        let now = self.now;
        let sessions = &mut self.servers[place].sessions;
        let Some(session) = sessions.iter_mut().find(|it| it.attempt == attempt) else {
            return;
        };
        let process = &self.processes[session.of.process];
        let ends = (End::Server(place), End::Process(session.of.process));
        let apart = self.network.is_apart(ends.0, ends.1, now);
        let gone = process.who != session.of || !process.up || process.is_frozen(now);
        let silent_since = *session.silent_since.get_or_insert(now);
        if !(apart || gone) {
            session.silent_since = None;
        } else if now - silent_since >= KEEPALIVE {
            return self.servers[place].end_session(attempt);
        }
        let server = place;
        self.after(KEEPALIVE / 4, Event::Keepalive { server, attempt });
    }
}
