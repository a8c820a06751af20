#include <array>

#include <scalevec/core/checkpoint/family.h>

namespace scalevec {
namespace {

using Window = Family::Window;
using Pairing = RopeSpec::Pairing;

constexpr FamilyRow embed{"embed", "model.embed_tokens", "token_embd"};
constexpr FamilyRow q{"layers.{}.attn.q", "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"};
constexpr FamilyRow k{"layers.{}.attn.k", "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"};
constexpr FamilyRow v{"layers.{}.attn.v", "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"};
constexpr FamilyRow o{"layers.{}.attn.o", "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"};
constexpr FamilyRow gate{"layers.{}.mlp.gate", "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"};
constexpr FamilyRow up{"layers.{}.mlp.up", "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"};
constexpr FamilyRow down{"layers.{}.mlp.down", "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"};
constexpr FamilyRow head{"head", "lm_head", "output"};
constexpr FamilyRow attn_input{"layers.{}.attn.input_norm", "model.layers.{}.input_layernorm",
                               "blk.{}.attn_norm"};
constexpr FamilyRow q_norm{"layers.{}.attn.q_norm", "model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"};
constexpr FamilyRow k_norm{"layers.{}.attn.k_norm", "model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"};
constexpr FamilyRow final_norm{"final_norm", "model.norm", "output_norm"};
constexpr FamilyRow rope_factors{"rope_factors", "", "rope_freqs.weight"};
// Llama names the norm before the MLP after what it stands behind; Gemma has another norm of that name.
constexpr FamilyRow mlp_input{"layers.{}.mlp.input_norm", "model.layers.{}.post_attention_layernorm",
                              "blk.{}.ffn_norm"};

constexpr std::array llama_rows{embed, attn_input, q,    k,          v,    o,           mlp_input,
                                gate,  up,         down, final_norm, head, rope_factors};
constexpr std::array qwen2_rows{embed, attn_input, q, k, v, o, mlp_input, gate, up, down, final_norm, head};
constexpr std::array qwen3_rows{embed,  attn_input, q,    k,  v,    o,          q_norm,
                                k_norm, mlp_input,  gate, up, down, final_norm, head};
constexpr std::array gemma3_rows{
    embed,
    attn_input,
    q,
    k,
    v,
    o,
    q_norm,
    k_norm,
    FamilyRow{"layers.{}.attn.output_norm", "model.layers.{}.post_attention_layernorm",
              "blk.{}.post_attention_norm"},
    FamilyRow{"layers.{}.mlp.input_norm", "model.layers.{}.pre_feedforward_layernorm", "blk.{}.ffn_norm"},
    gate,
    up,
    down,
    FamilyRow{"layers.{}.mlp.output_norm", "model.layers.{}.post_feedforward_layernorm",
              "blk.{}.post_ffw_norm"},
    final_norm,
    head};

constexpr std::string_view llama_defaults =
    R"({"vocab_size": 32000, "num_attention_heads": 32, "hidden_act": "silu",
  "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "attention_bias": false,
  "mlp_bias": false})";
constexpr std::string_view mistral_defaults = R"({"vocab_size": 32000, "num_attention_heads": 32,
  "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
  "tie_word_embeddings": false, "sliding_window": 4096})";
constexpr std::string_view qwen2_defaults = R"({"vocab_size": 151936, "num_attention_heads": 32,
  "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
  "tie_word_embeddings": false, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28})";
constexpr std::string_view qwen3_defaults = R"({"vocab_size": 151936, "num_attention_heads": 32,
  "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 32768,
  "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "attention_bias": false, "use_sliding_window": false,
  "sliding_window": 4096, "max_window_layers": 28})";
constexpr std::string_view gemma3_defaults = R"({"vocab_size": 262208, "num_attention_heads": 8,
  "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
  "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "attention_bias": false,
  "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1000000.0,
  "rope_local_base_freq": 10000.0})";

constexpr Family gemma3_text{.name = "gemma3",
                             .model_type = "gemma3_text",
                             .architecture = "Gemma3ForCausalLM",
                             .gguf = "gemma3",
                             .rows = gemma3_rows,
                             .defaults = gemma3_defaults,
                             .hf_offset = 1.0,
                             .qk_norm = true,
                             .sandwich = true,
                             .scaled_embedding = true,
                             .query_pre_attn_scalar = true,
                             .activation_key = "hidden_activation",
                             .activation = Activation::gelu_tanh,
                             .window = Window::pattern,
                             .window_pattern = 6,
                             .local_rope_base = 10000.0,
                             .wide_scale_layers = 62};  // 27B

constexpr Family with_text_config(Family family) {
  family.model_type = "gemma3";
  family.architecture = "Gemma3ForConditionalGeneration";
  family.gguf = "";
  family.config_in = "text_config";
  return family;
}

constexpr std::array known{
    Family{.name = "llama",
           .model_type = "llama",
           .architecture = "LlamaForCausalLM",
           .gguf = "llama",
           .rows = llama_rows,
           .defaults = llama_defaults,
           .gguf_pairing = Pairing::interleaved},
    Family{.name = "llama",  // in GGUF too Mistral is a Llama
           .model_type = "mistral",
           .architecture = "MistralForCausalLM",
           .gguf = "",
           .rows = llama_rows,
           .defaults = mistral_defaults,
           .window = Window::always},
    Family{.name = "qwen2",
           .model_type = "qwen2",
           .architecture = "Qwen2ForCausalLM",
           .gguf = "qwen2",
           .rows = qwen2_rows,
           .defaults = qwen2_defaults,
           .qkv_bias = true,
           .window = Window::optional},
    Family{.name = "qwen3",
           .model_type = "qwen3",
           .architecture = "Qwen3ForCausalLM",
           .gguf = "qwen3",
           .rows = qwen3_rows,
           .defaults = qwen3_defaults,
           .qk_norm = true,
           .window = Window::optional},
    gemma3_text,
    with_text_config(gemma3_text),
};

}  // namespace

std::span<const Family> families() { return known; }

}  // namespace scalevec
