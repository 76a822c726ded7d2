// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// tokenLifetime is what Docker Hub gives.
const tokenLifetime = 5 * time.Minute

// tokens issues the bearer tokens that Docker Hub demands for every pull: the token authentication of the distribution
// project. A token carries its claim and a signature, so nothing has to be remembered.
type tokens struct {
	key [32]byte
}

type claim struct {
	// Repository is empty where the token is good for no repository.
	Host, Repository string
	Expires          time.Time
	// Grant stands for the credentials that the token was issued for, empty for none.
	Grant string
}

func newTokens() *tokens {
	t := new(tokens)
	rand.Read(t.key[:]) // never fails
	return t
}

func (t *tokens) issue(c claim) string {
	payload, err := json.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("encoding a claim: %v", err))
	}
	return encode(payload) + "." + encode(t.sign(payload))
}

// grant returns what stands for the credentials of private, "" for nil.
func (t *tokens) grant(private *Private) string {
	if private == nil {
		return ""
	}
	return encode(t.sign([]byte(private.Username + ":" + private.Password)))
}

// allows tells whether the token in an Authorization header is for pulling from the repository, which private makes
// private unless it is nil. An empty repository asks whether the token is one of the host.
func (t *tokens) allows(authorization, host, repository string, private *Private) bool {
	token, ok := strings.CutPrefix(authorization, "Bearer ")
	if !ok {
		return false
	}
	encoded, signature, _ := strings.Cut(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return false
	}
	mac, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil || !hmac.Equal(mac, t.sign(payload)) {
		return false
	}
	var c claim
	if err := json.Unmarshal(payload, &c); err != nil {
		return false
	}
	mine := repository == "" || c.Repository == repository && c.Grant == t.grant(private)
	return c.Host == host && mine && time.Now().Before(c.Expires)
}

// serve answers GET /token?scope=repository:<name>:pull. As at Docker Hub, who asks for a private repository without
// credentials gets a token that is good for nothing, and who has wrong ones gets none.
func (t *tokens) serve(w http.ResponseWriter, r *http.Request, q *Request, private *Private) {
	c := claim{Host: q.Host, Repository: q.Repository, Expires: time.Now().Add(tokenLifetime)}
	switch {
	case private == nil:
	case private.admits(r):
		c.Grant = t.grant(private)
	case r.Header.Get("Authorization") == "":
		c.Repository = ""
	default:
		private.demand(w)
		return
	}
	token := t.issue(c)
	body, err := json.Marshal(map[string]any{"token": token, "expires_in": int(tokenLifetime.Seconds())})
	if err != nil {
		panic(fmt.Sprintf("encoding a token: %v", err))
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // an error means that the client left
}

// challenge answers a request without a valid token with where to get one. The realm has the name by which the client
// reached this server, since some clients ignore a realm on another host.
func challenge(w http.ResponseWriter, r *http.Request, q *Request) {
	value := fmt.Sprintf(`Bearer realm="https://%s/token",service="%s"`, r.Host, q.Host)
	if q.Repository != "" {
		value += fmt.Sprintf(`,scope="repository:%s:pull"`, q.Repository)
	}
	w.Header().Set("Www-Authenticate", value)
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func (t *tokens) sign(payload []byte) []byte {
	mac := hmac.New(sha256.New, t.key[:])
	mac.Write(payload)
	return mac.Sum(nil)
}

func encode(p []byte) string { return base64.RawURLEncoding.EncodeToString(p) }

// scopedRepository returns <name> of "repository:<name>:pull", and "" for every other scope.
func scopedRepository(scope string) string {
	rest, ok := strings.CutPrefix(scope, "repository:")
	name, actions, found := strings.Cut(rest, ":")
	if !ok || !found {
		return ""
	}
	for action := range strings.SplitSeq(actions, ",") {
		if action == "pull" {
			return name
		}
	}
	return ""
}
