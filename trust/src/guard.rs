//! Who may call what: one table for each gRPC service, asked before the service is.
//!
//! A call that is not in the table does not exist, so that one which is added later is nobody's until it is written there.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

use crate::caller::Caller;
use crate::counted::{Counted, Place, Places};
use crate::refusals::Refusals;
use crate::subject::Role;

/// The calls of a service by their names, and the roles that may make each.
pub type Rules = &'static [(&'static str, &'static [Role])];

/// Calls of one caller that are answered at once, and of all. A cluster on one machine may be one user's.
const MAX_CALLS_OF_ONE: usize = 4096;
const MAX_CALLS: usize = 16_384;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A gRPC service that is asked only by callers who may. Refusals are answered with PERMISSION_DENIED and logged.
#[derive(Clone)]
pub struct Guarded<S> {
    service: S,
    /// The same service with another limit of messages, and the calls that are for it.
    large: Option<(S, &'static [&'static str])>,
    rules: Rules,
    calls: Places,
    log: Arc<Refusals>,
}

impl<S> Guarded<S> {
    /// Guards `service` by its table.
    pub fn new(service: S, rules: Rules) -> Self {
        Self {
            service,
            large: None,
            rules,
            calls: Places::new("calls"),
            log: Arc::default(),
        }
    }

    /// Has `service`, which is the same with a higher limit for messages, answer these calls: the limit is a service's, and
    /// few calls need a high one.
    #[must_use]
    pub fn with_large(mut self, service: S, calls: &'static [&'static str]) -> Self {
        self.large = Some((service, calls));
        self
    }

    /// What answers a request.
    fn service_for(&mut self, request: &Request<Body>) -> &mut S {
        let asked = call_of(request);
        match &mut self.large {
            Some((large, calls)) if calls.contains(&asked) => large,
            _ => &mut self.service,
        }
    }

    /// Whether a request may be answered, and its place among those that are.
    fn admit(&self, request: &Request<Body>) -> Result<Place, Status> {
        let caller = self.check(request)?;
        let place = self
            .calls
            .take(Counted::of(caller), MAX_CALLS_OF_ONE, MAX_CALLS);
        place.map_err(|why| {
            self.log.tell(&why);
            Status::resource_exhausted(why)
        })
    }

    fn check<'a>(&self, request: &'a Request<Body>) -> Result<&'a Caller, Status> {
        let asked = call_of(request);
        let rule = self.rules.iter().find(|(call, _)| *call == asked);
        let Some((call, roles)) = rule else {
            return Err(Status::unimplemented("there is no such call"));
        };
        let Some(caller) = request.extensions().get::<Caller>() else {
            return Err(Status::permission_denied(format!(
                "{call} is for callers who are known"
            )));
        };
        if caller.is_one_of(roles) {
            return Ok(caller);
        }
        let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let why = format!(
            "{caller} may not call {call}: that needs a certificate of role {}",
            roles.join(" or ")
        );
        self.log.tell(&why);
        Err(Status::permission_denied(why))
    }
}

/// The name of the call that a request is for.
fn call_of(request: &Request<Body>) -> &str {
    let path = request.uri().path();
    path.rsplit('/').next().unwrap_or_default()
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if let Some((large, _)) = &mut self.large
            && large.poll_ready(context)?.is_pending()
        {
            return Poll::Pending;
        }
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        match self.admit(&request) {
            Ok(place) => {
                let answer = self.service_for(&request).call(request);
                Box::pin(async move {
                    let _place = place;
                    answer.await
                })
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::subject::{Peer, Subject};

    const RULES: Rules = &[
        ("Read", &[Role::Mount, Role::Admin]),
        ("Delete", &[Role::Admin]),
    ];

    fn request(path: &str) -> Request<Body> {
        let mut request = Request::new(Body::default());
        *request.uri_mut() = path.parse().unwrap();
        request
    }

    fn asked(caller: Option<Caller>, path: &str) -> Result<(), Status> {
        let mut request = request(path);
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        Guarded::new((), RULES).admit(&request).map(drop)
    }

    fn peer(role: Role) -> Caller {
        let peer = Peer {
            subject: Subject::new(role, "a".parse().unwrap()),
            addresses: Vec::new(),
            begins: SystemTime::UNIX_EPOCH,
            expires: SystemTime::UNIX_EPOCH,
        };
        let from = Some("10.0.0.7".parse().unwrap());
        Caller::Peer {
            peer: Arc::new(peer),
            from,
        }
    }

    #[test]
    fn a_call_is_for_the_roles_of_its_table_and_the_refusal_names_them() {
        asked(Some(peer(Role::Mount)), "/weir.v1.Master/Read").unwrap();
        asked(Some(peer(Role::Admin)), "/weir.v1.Master/Delete").unwrap();
        asked(Some(Caller::Local { uid: 7 }), "/weir.v1.Master/Delete").unwrap();
        let refused = asked(Some(peer(Role::Mount)), "/weir.v1.Master/Delete").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let message =
            "mount a at 10.0.0.7 may not call Delete: that needs a certificate of role admin";
        assert_eq!(refused.message(), message);
    }

    #[test]
    fn only_calls_that_are_named_go_to_the_service_for_large_messages() {
        let mut guarded = Guarded::new("small", RULES).with_large("large", &["Delete"]);
        let mut service_for = |path: &str| *guarded.service_for(&request(path));
        assert_eq!(service_for("/weir.v1.Master/Delete"), "large");
        for path in ["/weir.v1.Master/Read", "/weir.v1.Master/DeleteAll", "/"] {
            assert_eq!(service_for(path), "small", "{path}");
        }
    }

    #[test]
    fn calls_that_no_table_has_and_callers_who_are_not_known_are_refused() {
        let code = |caller, path| asked(caller, path).unwrap_err().code();
        let unknown = code(Some(Caller::Local { uid: 0 }), "/weir.v1.Master/New");
        assert_eq!(unknown, tonic::Code::Unimplemented);
        assert_eq!(
            code(Some(peer(Role::Admin)), "/"),
            tonic::Code::Unimplemented
        );
        let nobody = code(None, "/weir.v1.Master/Read");
        assert_eq!(nobody, tonic::Code::PermissionDenied);
    }
}
