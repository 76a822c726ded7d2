// SPDX-License-Identifier: Apache-2.0

// Package auth authorizes requests to registries: it parses challenges, requests tokens, and remembers both.
//
// It behaves like the client of containerd with the following differences, which docs/development/upstreams.md explains:
// challenges and tokens are remembered for later requests and never used again after a rejection, and credentials are sent
// only to the registry to which they belong and to its token server.
package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
)

const (
	// maxRemembered limits the remembered challenges, and the remembered tokens: one of each per repository. The least
	// recently used one is dropped.
	maxRemembered = 1024
	// rememberedTimeout limits the time for which a request waits for a token of a remembered challenge. The token server
	// can have changed since then, so a request without authorization may return another challenge.
	rememberedTimeout = 5 * time.Second
)

// Credentials are a user name and a password. The zero value means an anonymous user.
type Credentials struct{ Username, Password string }

// Options are the parameters of an Authorizer.
type Options struct {
	// Registry is a URL of the registry to which the credentials belong. Required.
	Registry *url.URL
	// Credentials returns the current credentials. It is called for each use, so that a rotation needs no restart. nil
	// means anonymous.
	Credentials func() (Credentials, error)
	// Transport sends the requests to token servers. Required.
	Transport http.RoundTripper
	// Timeout limits one exchange, and must be positive.
	Timeout time.Duration
}

// Authorizer has the challenges and tokens of one upstream and of the registries to which it redirects. It is safe for
// concurrent use.
type Authorizer struct {
	options    Options
	registry   origin
	challenges *lru.Cache[place, Challenge]
	tokens     *lru.Cache[grant, *issuedToken]
	exchanges  *background.Coalescer[grant, *issuedToken]
}

// place is where a challenge was met: a repository of a server, or any repository of it if repository is empty.
type place struct {
	origin     origin
	repository string
}

// issuedToken is a token until it expires.
type issuedToken struct {
	value   string
	issued  time.Time
	expires time.Time
}

// New returns an Authorizer without challenges and tokens. Requests for tokens belong to the group.
func New(group *background.Group, o Options) (*Authorizer, error) {
	a := &Authorizer{options: o, registry: originOf(o.Registry), exchanges: background.NewCoalescer[grant, *issuedToken](group)}
	var challengesErr, tokensErr error
	a.challenges, challengesErr = lru.New[place, Challenge](maxRemembered)
	a.tokens, tokensErr = lru.New[grant, *issuedToken](maxRemembered)
	return a, errors.Join(challengesErr, tokensErr)
}

// Choose returns the challenge of a response from u to respond to. ok is false if there is none that is supported.
func (a *Authorizer) Choose(u *url.URL, header http.Header) (chosen Challenge, ok bool) {
	return choose(ParseChallenges(header), a.options.Credentials != nil && originOf(u) == a.registry)
}

// Respond returns the value of the header Authorization that responds to a challenge of the server of u. scope is the
// scope of the repository, or empty. For Bearer, it uses a remembered token, or requests one. Errors are *TokenError, an
// error of the credentials, or the error of the context's end.
func (a *Authorizer) Respond(ctx context.Context, u *url.URL, c Challenge, scope string) (string, error) {
	value, _, err := a.respond(ctx, originOf(u), c, scope)
	return value, err
}

func (a *Authorizer) respond(ctx context.Context, challenger origin, c Challenge, scope string) (string, *issuedToken, error) {
	user, err := a.credentials(challenger)
	if err != nil {
		return "", nil, err
	}
	if c.Scheme == basic {
		if user == (Credentials{}) {
			return "", nil, nil
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username+":"+user.Password)), nil, nil
	}
	issued, err := a.token(ctx, grantOf(challenger, c, scope), user)
	if err != nil {
		return "", nil, err
	}
	return "Bearer " + issued.value, issued, nil
}

func grantOf(challenger origin, c Challenge, scope string) grant {
	return grant{challenger: challenger, realm: c.Parameters["realm"], service: c.Parameters["service"], scopes: scopesOf(c, scope)}
}

// credentials returns the credentials for a server: none for servers to which they do not belong.
func (a *Authorizer) credentials(server origin) (Credentials, error) {
	if a.options.Credentials == nil || server != a.registry {
		return Credentials{}, nil
	}
	return a.options.Credentials()
}

// token returns a remembered token or requests one. Concurrent requests for the same token share one exchange, which
// continues if ctx ends.
func (a *Authorizer) token(ctx context.Context, g grant, user Credentials) (*issuedToken, error) {
	if known := a.rememberedToken(g); known != nil {
		return known, nil
	}
	return a.exchanges.Do(ctx, g, func(ctx context.Context) (*issuedToken, error) {
		// Another exchange can have ended since the check above.
		if known := a.rememberedToken(g); known != nil {
			return known, nil
		}
		ctx, cancel := context.WithTimeoutCause(ctx, a.options.Timeout, ErrTimeout)
		defer cancel()
		got, err := tokenRequest{grant: g, transport: a.options.Transport, user: user}.send(ctx)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		issued := &issuedToken{value: got.value, issued: now, expires: now.Add(got.lifetime - min(expiryMargin, got.lifetime/2))}
		a.tokens.Add(g, issued)
		return issued, nil
	})
}

func (a *Authorizer) rememberedToken(g grant) *issuedToken {
	known, ok := a.tokens.Get(g)
	if !ok || !time.Now().Before(known.expires) {
		return nil
	}
	return known
}

// recall returns the challenge that was last answered successfully for a repository. If there is none, it returns the one
// of another repository of the server: most registries have one token server.
func (a *Authorizer) recall(server origin, repository string) (Challenge, bool) {
	if c, ok := a.challenges.Get(place{server, repository}); ok {
		return c, true
	}
	return a.challenges.Get(place{origin: server})
}

// remember stores a challenge that was answered successfully.
func (a *Authorizer) remember(server origin, repository string, c Challenge) {
	a.challenges.Add(place{server, repository}, c)
	general := Challenge{Scheme: c.Scheme, Parameters: map[string]string{"realm": c.Parameters["realm"], "service": c.Parameters["service"]}}
	a.challenges.Add(place{origin: server}, general)
}

// forget drops the challenges that recall returns.
func (a *Authorizer) forget(server origin, repository string) {
	a.challenges.Remove(place{server, repository})
	a.challenges.Remove(place{origin: server})
}
