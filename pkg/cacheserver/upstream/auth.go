// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/singleflight"

	"github.com/registry-cache/extension/pkg/contract"
)

const (
	// defaultTokenLifetime is what the token specification says about answers without expires_in.
	defaultTokenLifetime = time.Minute
	// tokenMargin is how long before its end a token is no longer used.
	tokenMargin = 10 * time.Second
	// maxTokens bounds the remembered tokens, one per repository. They are all dropped when it is reached.
	maxTokens = 1024
)

// authorizer finds the header Authorization for requests to the upstream. Nothing is sent before the upstream has
// asked for it, so an upstream that never asks is never asked for tokens. One token serves all requests to a
// repository until it expires.
type authorizer struct {
	registry    name.Registry
	credentials authn.Authenticator
	transport   http.RoundTripper
	timeout     time.Duration
	exchanges   singleflight.Group

	mu        sync.Mutex // guards what follows
	challenge *transport.Challenge
	scopes    map[string]string
	tokens    map[string]token
}

type token struct {
	value   string
	expires time.Time
}

func newAuthorizer(remote *url.URL, credentialsDir string, t http.RoundTripper, timeout time.Duration) (*authorizer, error) {
	var options []name.Option
	if remote.Scheme == "http" {
		options = append(options, name.Insecure)
	}
	registry, err := name.NewRegistry(remote.Host, options...)
	if err != nil {
		return nil, fmt.Errorf("parsing the host of the remote URL: %w", err)
	}
	credentials := authn.Anonymous
	if credentialsDir != "" {
		credentials = fileCredentials(credentialsDir)
		if _, err := credentials.Authorization(); err != nil {
			return nil, err
		}
	}
	return &authorizer{
		registry:    registry,
		credentials: credentials,
		transport:   t,
		timeout:     timeout,
		scopes:      map[string]string{},
		tokens:      map[string]token{},
	}, nil
}

// authorization returns the header for requests about repository; empty means none.
func (a *authorizer) authorization(ctx context.Context, repository string) (string, error) {
	a.mu.Lock()
	challenge := a.challenge
	scope := cmp.Or(a.scopes[repository], "repository:"+repository+":pull")
	known := a.tokens[scope]
	a.mu.Unlock()
	switch {
	case challenge == nil:
		return "", nil
	case strings.EqualFold(challenge.Scheme, "basic"):
		return a.basic()
	case time.Now().Before(known.expires):
		return "Bearer " + known.value, nil
	}
	// All requests that wait for the token share the exchange, so it must not end with the first of them.
	detached := context.WithoutCancel(ctx)
	result := a.exchanges.DoChan(scope, func() (any, error) {
		// Another exchange may have ended after the look above.
		a.mu.Lock()
		latest := a.tokens[scope]
		a.mu.Unlock()
		if time.Now().Before(latest.expires) {
			return latest.value, nil
		}
		ctx, cancel := context.WithTimeout(detached, a.timeout)
		defer cancel()
		return a.exchange(ctx, challenge, scope)
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return "", r.Err
		}
		return "Bearer " + r.Val.(string), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// basic is the header for the scheme Basic; empty without credentials.
func (a *authorizer) basic() (string, error) {
	config, err := a.credentials.Authorization()
	if err != nil || config.Username == "" && config.Password == "" {
		return "", err
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(config.Username+":"+config.Password)), nil
}

// exchange asks the token server. An empty scope stands for none.
func (a *authorizer) exchange(ctx context.Context, challenge *transport.Challenge, scope string) (string, error) {
	op, scopes := "getting a token", []string(nil)
	if scope != "" {
		op, scopes = op+" for "+scope, []string{scope}
	}
	answer, err := transport.Exchange(ctx, a.registry, a.credentials, a.transport, scopes, challenge)
	if err != nil {
		a.forget(challenge)
		if refused, ok := errors.AsType[*transport.Error](err); ok {
			failed := &Error{Op: op, StatusCode: refused.StatusCode}
			if !failed.Denied() && !failed.Temporary() {
				// A 404 of the token server says nothing about the content.
				failed = &Error{Op: op, Err: fmt.Errorf("the token server answered %d %s", refused.StatusCode, http.StatusText(refused.StatusCode))}
			}
			return "", failed
		}
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			return "", &Error{Op: op, Err: wrapped.Err}
		}
		if ctx.Err() != nil {
			return "", &Error{Op: op, Err: errHeaderTimeout}
		}
		// The text of other errors may quote the answer, which may hold a token.
		return "", &Error{Op: op, Err: errors.New("the upstream names a token server that cannot be used, or it answered without a token")}
	}
	lifetime := defaultTokenLifetime
	if answer.ExpiresIn > 0 {
		lifetime = time.Duration(answer.ExpiresIn) * time.Second
	}
	value := cmp.Or(answer.AccessToken, answer.Token)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxTokens {
		clear(a.tokens)
	}
	a.tokens[scope] = token{value: value, expires: time.Now().Add(lifetime - min(tokenMargin, lifetime/2))}
	return value, nil
}

// forget lets the next request learn anew what the upstream asks for, which may be another token server by now, or
// none.
func (a *authorizer) forget(challenge *transport.Challenge) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.challenge == challenge {
		a.challenge = nil
	}
}

// challenged notes what the upstream asks for in an answer with the status 401 to a request that was sent with the
// header authorization. It says whether another try makes sense.
func (a *authorizer) challenged(ctx context.Context, resp *http.Response, repository, authorization string) bool {
	// Ping reads the challenge of an answer; here it gets the one that is there instead of asking for another.
	challenge, err := transport.Ping(ctx, a.registry, answered{resp})
	if err != nil {
		return false
	}
	basic := strings.EqualFold(challenge.Scheme, "basic")
	if !basic && !strings.EqualFold(challenge.Scheme, "bearer") {
		return false
	}
	a.mu.Lock()
	a.challenge = challenge
	scope := cmp.Or(challenge.Parameters["scope"], "repository:"+repository+":pull")
	if len(a.scopes) >= maxTokens {
		clear(a.scopes)
	}
	a.scopes[repository] = scope
	if authorization == "Bearer "+a.tokens[scope].value {
		delete(a.tokens, scope)
	}
	a.mu.Unlock()
	if basic {
		next, err := a.authorization(ctx, repository)
		return err == nil && next != "" && next != authorization
	}
	return true
}

// answered is a round tripper whose every answer has the challenge of resp.
type answered struct{ resp *http.Response }

func (t answered) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: t.resp.StatusCode,
		Header:     http.Header{"Www-Authenticate": t.resp.Header.Values("Www-Authenticate")},
		Body:       http.NoBody,
		Request:    t.resp.Request,
	}, nil
}

// fileCredentials is a folder with the files username and password, read for each use so that a rotation needs no
// restart.
type fileCredentials string

// Authorization implements authn.Authenticator.
func (dir fileCredentials) Authorization() (*authn.AuthConfig, error) {
	var values [2]string
	for i, file := range []string{contract.UsernameKey, contract.PasswordKey} {
		content, err := readFile(filepath.Join(string(dir), file))
		if err != nil {
			return nil, fmt.Errorf("reading credentials: %w", err)
		}
		values[i] = contract.Credential(content)
	}
	return &authn.AuthConfig{Username: values[0], Password: values[1]}, nil
}
