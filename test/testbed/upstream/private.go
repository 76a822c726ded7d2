// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Private makes repositories private: only who has the credentials can pull from them.
//
// Where a host demands tokens (Options.TokenHosts), the credentials are for the token server, as at Docker Hub; others
// ask for them with each request (HTTP basic authentication).
type Private struct {
	// Host is the registry, docker.io for all names of Docker Hub. Required.
	Host string `json:"host"`
	// Repository is a whole one; empty means all of the host.
	Repository string `json:"repository,omitempty"`
	// Username and Password are the credentials. Required; no colon in the user name.
	Username string `json:"username"`
	Password string `json:"password"`
	// NextPassword is accepted as well, as while credentials are rotated; empty means none.
	NextPassword string `json:"nextPassword,omitempty"`
}

// Validate returns an error that names the field which is wrong, without its value.
func (p Private) Validate() error {
	switch {
	case p.Host == "":
		return errors.New("host: must not be empty")
	case p.Username == "" || strings.Contains(p.Username, ":"):
		return errors.New("username: must not be empty nor have a colon in it")
	case p.Password == "":
		return errors.New("password: must not be empty")
	}
	return nil
}

// privates are the private repositories. It is safe for concurrent use.
type privates struct {
	mu   sync.Mutex // guards list
	list []Private
}

func (p *privates) set(list []Private) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = slices.Clone(list)
}

// of returns what makes the requested repository private, nil if it is public. A ping concerns what is private on its
// host: clients learn from it how to authenticate.
func (p *privates) of(q *Request) *Private {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, private := range p.list {
		mine := q.Repository != "" && (private.Repository == "" || private.Repository == q.Repository)
		if private.Host == q.Host && (mine || q.Kind == Ping) {
			return &private
		}
	}
	return nil
}

// demand answers a request without the credentials.
func (p *Private) demand(w http.ResponseWriter) {
	w.Header().Set("Www-Authenticate", fmt.Sprintf("Basic realm=%q", p.Host))
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

// admits tells whether the request has the credentials.
func (p *Private) admits(r *http.Request) bool {
	username, password, ok := r.BasicAuth()
	accepted := func(wanted string) bool {
		return wanted != "" && hmac.Equal([]byte(username+":"+password), []byte(p.Username+":"+wanted))
	}
	return ok && (accepted(p.Password) || accepted(p.NextPassword))
}

// Protect replaces what is private on the server; without any all repositories are public. Of several that concern a
// repository the first one counts. Other credentials also end the tokens that the former ones have got.
func (s *Server) Protect(list ...Private) error {
	list = slices.Clone(list)
	for i := range list {
		if err := list[i].Validate(); err != nil {
			return fmt.Errorf("private[%d].%w", i, err)
		}
		list[i].Host = registryHost(list[i].Host, s.options.DefaultHost)
	}
	s.privates.set(list)
	return nil
}
