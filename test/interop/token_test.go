// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	tokenIssuer  = "interoperability tests"
	tokenService = "distribution"
	// tokenLifetime is short, so that tokens expire during the suite. A client must not take less than 60 s for the lifetime
	// (distribution, token authentication specification).
	tokenLifetime = time.Minute
)

// tokenServer issues tokens for a registry with token authentication, as the distribution project specifies it. Each request
// needs the credentials of the registry.
type tokenServer struct {
	username, password string
	signer             jose.Signer
	keys               jose.JSONWebKeySet // public
	server             *httptest.Server
}

// startTokenServer starts a server. The caller closes it.
func startTokenServer(username, password string) (*tokenServer, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key := jose.JSONWebKey{Key: private, KeyID: "interop", Algorithm: string(jose.ES256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	s := &tokenServer{username: username, password: password, signer: signer, keys: jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}}}
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	return s, nil
}

// realm returns the URL of the server, with localhost as its host.
func (s *tokenServer) realm() string { return withName(s.server.URL) + "/token" }

// withName replaces the address 127.0.0.1 by localhost. Clients protect private networks: go-containerregistry accepts no realm
// with a loopback address, and oras only a realm with the host name of the registry.
func withName(address string) string { return strings.Replace(address, "127.0.0.1", "localhost", 1) }

func (s *tokenServer) close() { s.server.Close() }

// writeKeys writes the public keys into dir and returns the path of the file.
func (s *tokenServer) writeKeys(dir string) (string, error) {
	content, err := json.Marshal(s.keys)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "jwks.json")
	return file, os.WriteFile(file, content, 0o600)
}

// access is an entry of the claim "access".
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func (s *tokenServer) serve(w http.ResponseWriter, r *http.Request) {
	username, password, err := tokenCredentials(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if username != s.username || password != s.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="token"`)
		http.Error(w, "wrong credentials", http.StatusUnauthorized)
		return
	}
	granted, err := parseScopes(r.Form["scope"])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := time.Now()
	token, err := jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer: tokenIssuer, Subject: username, Audience: jwt.Audience{tokenService}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)), Expiry: jwt.NewNumericDate(now.Add(tokenLifetime)),
	}).Claims(map[string]any{"access": granted}).Serialize()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// containerd 1.6 reads access_token after a POST and token after a GET.
	body, err := json.Marshal(map[string]any{
		"token": token, "access_token": token, "expires_in": int(tokenLifetime.Seconds()), "issued_at": now.UTC().Format(time.RFC3339),
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(body)
}

// tokenCredentials returns the credentials of a GET request with Basic authentication or of a POST request of OAuth 2 with the
// grant type "password".
func tokenCredentials(r *http.Request) (username, password string, err error) {
	if err := r.ParseForm(); err != nil {
		return "", "", err
	}
	if service := r.Form.Get("service"); service != tokenService {
		return "", "", fmt.Errorf("service %q, want %q", service, tokenService)
	}
	if r.Method == http.MethodGet {
		username, password, _ = r.BasicAuth()
		return username, password, nil
	}
	if grant := r.PostForm.Get("grant_type"); r.Method != http.MethodPost || grant != "password" {
		return "", "", fmt.Errorf("method %s with grant type %q", r.Method, grant)
	}
	return r.PostForm.Get("username"), r.PostForm.Get("password"), nil
}

// parseScopes parses values of the parameter scope, each with one or more "repository:<name>:<action>,…".
func parseScopes(values []string) ([]access, error) {
	granted := []access{}
	for _, value := range values {
		for scope := range strings.FieldsSeq(value) {
			kind, rest, ok := strings.Cut(scope, ":")
			end := strings.LastIndex(rest, ":")
			if !ok || end < 0 {
				return nil, errors.New("invalid scope " + scope)
			}
			granted = append(granted, access{kind, rest[:end], strings.Split(rest[end+1:], ",")})
		}
	}
	return granted, nil
}

func TestTokenServer(t *testing.T) {
	t.Parallel()
	s, err := startTokenServer("user", "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	get := func(password, query string) (status int, token string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.realm()+"?service="+tokenService+"&"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth("user", password)
		response, err := s.server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var answer struct {
			Token string `json:"token"`
		}
		if response.StatusCode == http.StatusOK {
			if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
				t.Fatal(err)
			}
		}
		return response.StatusCode, answer.Token
	}
	if status, _ := get("wrong", "scope=repository:a/b:pull"); status != http.StatusUnauthorized {
		t.Errorf("wrong password: status %d", status)
	}
	if status, _ := get("secret", "scope=repository"); status != http.StatusBadRequest {
		t.Errorf("invalid scope: status %d", status)
	}
	_, issued := get("secret", "scope=repository:a/b:pull,push")
	token, err := jwt.ParseSigned(issued, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.Claims
		Access []access `json:"access"`
	}
	if err := token.Claims(s.keys, &claims); err != nil {
		t.Fatal(err)
	}
	if err := claims.Validate(jwt.Expected{Issuer: tokenIssuer, AnyAudience: jwt.Audience{tokenService}}); err != nil {
		t.Error(err)
	}
	if len(claims.Access) != 1 || claims.Access[0].Name != "a/b" || len(claims.Access[0].Actions) != 2 {
		t.Errorf("granted %v", claims.Access)
	}
}
