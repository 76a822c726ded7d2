// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"net/http"
	"time"
)

// maxRepetitions limits the repetitions of one request: containerd sends a request at most five times.
const maxRepetitions = 4

// Request authorizes one request for a repository, its redirects and its repetitions. For each server, it proceeds as
// follows:
//
//  1. It responds to the remembered challenge, if there is one.
//  2. After a rejection, it drops the remembered challenge and token, and responds to the challenge of the rejection, if
//     there is one.
//  3. After another rejection, or if a token server issues no token, it sends no authorization, like a client that
//     remembers nothing.
//  4. It responds to the challenge of the response, with a new token if a remembered one is rejected. If the token server
//     issues no token, or the response is another
//     rejection with the same challenge, the request has failed.
//
// It is not safe for concurrent use.
type Request struct {
	authorizer  *Authorizer
	repository  string
	began       time.Time // of the last repetition by the caller
	servers     map[origin]*exchange
	repetitions int
}

// exchange is the authorization of one Request at one server.
type exchange struct {
	state     state
	challenge Challenge
	// sent is the value of the last header, empty if there was none. token is its token, nil for another scheme.
	sent  string
	token *issuedToken
}

// old reports that the token was issued for an earlier request. The upstream can have revoked it, although the challenge is new.
func (e exchange) old(began time.Time) bool { return e.token != nil && e.token.issued.Before(began) }

// state is the origin of the authorization that is sent next.
type state int

const (
	remembered state = iota // a remembered challenge, if there is one
	none                    // no authorization is sent
	rejected                // the challenge of a response that rejected an authorization
	challenged              // the challenge of a response to a request without authorization
)

// NewRequest returns the authorization of one request for a repository. Repository is the full name at the upstream.
func (a *Authorizer) NewRequest(repository string) *Request {
	return &Request{authorizer: a, repository: repository, began: time.Now(), servers: map[origin]*exchange{}}
}

// scope is the scope of the token specification for pulls of the repository.
func (r *Request) scope() string { return "repository:" + r.repository + ":pull" }

// Begin begins a repetition of the request for another reason than its authorization. It keeps the challenges. Tokens
// that were issued before can be replaced again.
func (r *Request) Begin() { r.began, r.repetitions = time.Now(), 0 }

// Authorize sets or removes the header Authorization of a request to any server: the registry, or the target of a redirect.
// It can request a token. Errors are those of Authorizer.Respond.
func (r *Request) Authorize(req *http.Request) error {
	server := originOf(req.URL)
	e := r.servers[server]
	if e == nil {
		e = &exchange{}
		r.servers[server] = e
	}
	req.Header.Del("Authorization")
	e.sent, e.token = "", nil
	if e.state == remembered {
		var ok bool
		if e.challenge, ok = r.authorizer.recall(server, r.repository); !ok {
			e.state = none
		}
	}
	if e.state == none {
		return nil
	}
	ctx := req.Context()
	if e.state == remembered {
		limited, cancel := context.WithTimeout(ctx, rememberedTimeout)
		defer cancel()
		ctx = limited
	}
	var err error
	e.sent, e.token, err = r.authorizer.respond(ctx, server, e.challenge, r.scope())
	if err == nil {
		if e.sent != "" {
			req.Header.Set("Authorization", e.sent)
		}
		return nil
	}
	if e.state == challenged || req.Context().Err() != nil {
		return err
	}
	r.authorizer.forget(server, r.repository)
	e.state = none
	return nil
}

// Repeat evaluates a response and reports whether the request must be sent again. It drops a rejected authorization and
// remembers an accepted one.
func (r *Request) Repeat(resp *http.Response) bool {
	server := originOf(resp.Request.URL)
	e := r.servers[server]
	if e == nil {
		return false
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
	case resp.StatusCode == http.StatusForbidden:
		// A token of an earlier request can be revoked. Amazon's registry responds 403 to an expired one. With a new token,
		// 403 is a decision about the repository.
		if !e.old(r.began) {
			return false
		}
	default:
		if resp.StatusCode < http.StatusInternalServerError {
			r.accepted()
		}
		return false
	}
	repeat := r.next(server, e, resp)
	if r.repetitions++; r.repetitions > maxRepetitions {
		return false
	}
	return repeat
}

// next drops a rejected authorization and decides on the next one. It returns false if the rejection is final.
func (r *Request) next(server origin, e *exchange, resp *http.Response) bool {
	previous := *e
	if previous.sent != "" {
		r.drop(server, e)
	}
	challenge, ok := r.authorizer.Choose(resp.Request.URL, resp.Header)
	ok = ok && resp.StatusCode == http.StatusUnauthorized
	switch {
	case previous.sent == "":
		// The same challenge again, although no authorization responds to it: a repetition would change nothing.
		e.state, e.challenge = challenged, challenge
		return ok && previous.state != challenged
	case ok && (previous.state == remembered || previous.old(r.began) || !same(challenge, previous.challenge)):
		e.state, e.challenge = rejected, challenge
		return true
	case previous.state == remembered, previous.state == rejected, previous.old(r.began):
		e.state = none
		return true
	}
	return false
}

// drop removes a rejected token and the challenge for which it was issued.
func (r *Request) drop(server origin, e *exchange) {
	g := grantOf(server, e.challenge, r.scope())
	if current, ok := r.authorizer.tokens.Peek(g); ok && current == e.token {
		r.authorizer.tokens.Remove(g)
	}
	r.authorizer.forget(server, r.repository)
}

// accepted remembers the authorizations of a request that was not rejected.
func (r *Request) accepted() {
	for server, e := range r.servers {
		if e.sent == "" {
			continue
		}
		r.authorizer.remember(server, r.repository, e.challenge)
	}
}
