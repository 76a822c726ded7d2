// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"fmt"
	"net"

	"github.com/gardener/gardener/pkg/utils/kubernetes"
	secretsutils "github.com/gardener/gardener/pkg/utils/secrets"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

const (
	tlsVolume = "tls"
	tlsDir    = "/etc/registry-cache-tls"
)

// Certificate is what a cache proves itself with, both in PEM.
type Certificate struct {
	Certificate, Key []byte
}

// TLS tells whether cache is served by https. The defaults of cache must be filled in.
func TLS(cache v1alpha3.RegistryCache) bool {
	return cache.HTTP != nil && *cache.HTTP.TLS
}

// ServerNames are the names and addresses under which clients in the Shoot reach cache, and which its certificate must
// have: those of its Service, which has a single address, clusterIP.
func ServerNames(cache v1alpha3.RegistryCache, clusterIP string) (dnsNames []string, addresses []net.IP, err error) {
	address := net.ParseIP(clusterIP)
	if address == nil {
		return nil, nil, fmt.Errorf("the address %q of the Service of the cache of %s is no IP address", clusterIP, cache.Upstream)
	}
	return kubernetes.DNSNamesForService(cache.ServiceName(), Namespace), []net.IP{address}, nil
}

// serverTLS are the files that mountCertificate mounts.
func serverTLS() config.TLS {
	return config.TLS{CertFile: tlsDir + "/" + corev1.TLSCertKey, KeyFile: tlsDir + "/" + corev1.TLSPrivateKeyKey}
}

// tlsSecret has the same name with any content, for the reason that configSecret gives. The pod template does not depend
// on the content: the server reads the files again when the kubelet has replaced them.
func tlsSecret(cache v1alpha3.RegistryCache, certificate *Certificate) (*corev1.Secret, error) {
	if certificate == nil {
		return nil, fmt.Errorf("the cache of %s is to be served by https and has no certificate", cache.Upstream)
	}
	return &corev1.Secret{
		ObjectMeta: objectMeta(cache, cache.ObjectName()+"-tls"),
		Type:       corev1.SecretTypeTLS,
		Data: map[string][]byte{
			secretsutils.DataKeyCertificate: certificate.Certificate,
			secretsutils.DataKeyPrivateKey:  certificate.Key,
		},
	}, nil
}

// mountCertificate gives the pods of set the certificate. It is a volume of its own, because what is in one Secret must be
// in one volume, and not mounted with a subPath: both would keep the kubelet from replacing certificate and key in one
// step, or at all.
func mountCertificate(set *appsv1.StatefulSet, secretName string) {
	spec := &set.Spec.Template.Spec
	spec.Volumes = append(spec.Volumes, corev1.Volume{
		Name:         tlsVolume,
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secretName, DefaultMode: new(int32(0o440))}},
	})
	spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: tlsVolume, MountPath: tlsDir, ReadOnly: true})
}
